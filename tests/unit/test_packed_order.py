"""Packed weights whose columns lie in the order of their groups (GPTQ's act-order)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm.checkpoint import Checkpoint
from llm.errors import InvalidArgumentError
from llm.models import DecoderModel
from llm.models.layers.packed import PackedLinear, packed_matrices
from tests.quantised_checkpoints import FORMATS, logits_of_kernels, write_pair

ORDER = "model.layers.0.self_attn.q_proj.g_idx"


@pytest.mark.parametrize("change", [lambda order: order.roll(1), lambda order: order.clamp(max=2)])
def test_orders_that_differ_and_groups_of_unequal_size_are_expanded(
    tmp_path: Path, change: Callable[[Tensor], Tensor]
) -> None:
    write_pair(tmp_path, FORMATS["gptq act-order"], num_hidden_layers=1)
    file = tmp_path / "quantised" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {ORDER: change(tensors[ORDER])}, file)
    packed = Checkpoint(tmp_path / "quantised").model("float32", keep_packed=True)
    assert packed.get_parameter("layers.0.attention.qkv_proj.weight").shape == (256, 128)
    assert len(packed_matrices(packed)) == 3


def test_kernels_read_each_matrix_in_its_own_order(tmp_path: Path) -> None:
    """Without the order of one layer, results are far from those with it, whichever layer that is."""
    write_pair(tmp_path, FORMATS["gptq 8 bits act-order"], num_hidden_layers=1)
    model = Checkpoint(tmp_path / "quantised").model("float32", keep_packed=True)
    assert isinstance(model, DecoderModel)
    ids, layers = torch.arange(40), [layer for layer in model.modules() if isinstance(layer, PackedLinear)]
    wanted = logits_of_kernels(model, ids)
    assert len(layers) == 4
    for layer in layers:
        kept, order = layer.matrix, layer.matrix.order
        assert order is not None
        layer.matrix = type(kept)(kept.parts, kept.num_cols, kept.data)
        assert (logits_of_kernels(model, ids) - wanted).abs().max() > 0.05 * wanted.abs().max()
        for broken in (order[:-1], order.clamp(min=1), order + 1):
            layer.matrix = type(kept)(kept.parts, kept.num_cols, kept.data, broken)
            with pytest.raises(InvalidArgumentError, match="an order of columns must name each input of"):
                logits_of_kernels(model, ids)
        layer.matrix = kept
    assert torch.equal(logits_of_kernels(model, ids), wanted)
