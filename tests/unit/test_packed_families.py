"""Packed weights of every family in GGUF files."""

from pathlib import Path

import pytest
import torch

from llm import BPETokenizer, DecoderModel
from llm.checkpoint import Checkpoint, atomic_directory, write_model
from llm.export import export
from llm.models import ForwardContext, positions_of
from llm.models.families import family_of
from llm.models.layers.packed import packed_matrices
from tests.quantised_checkpoints import logits_of_kernels
from tests.rounding import deviations
from tests.small_families import FAMILIES, small

MATRICES_PER_LAYER = 4


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_packed_model_computes_what_the_unpacked_one_does(
    name: str, tmp_path: Path, tiny_tokenizer: BPETokenizer
) -> None:
    torch.manual_seed(1)
    config = small(name)
    assert family_of(config).model_type == name
    with atomic_directory(tmp_path / "a") as directory:
        write_model(directory, DecoderModel(config), tiny_tokenizer)
    checkpoint = Checkpoint(export(tmp_path / "a", tmp_path / "a.gguf", "gguf", quantization="q8_0"))
    packed, plain = checkpoint.model(keep_packed=True), checkpoint.model()
    assert isinstance(packed, DecoderModel)
    assert isinstance(plain, DecoderModel)
    assert len(packed_matrices(packed)) >= MATRICES_PER_LAYER * config.num_hidden_layers + 1
    ids = torch.arange(40) * 7
    wanted = plain(ids, positions_of((40,)), ForwardContext.for_sequences((40,)))
    assert torch.equal(packed(ids, positions_of((40,)), ForwardContext.for_sequences((40,))), wanted)
    if config.latent is not None:  # the kernels don't take latent attention
        return
    # Kernels round the inputs of packed products to 8 bits: logits move as far as that explains, and no further.
    moved = logits_of_kernels(packed, ids) - wanted
    pairs = [(position, token, (token + 131) % 384) for position in range(0, 40, 4) for token in (3, 200)]
    found = torch.tensor([float(moved[place, one] - moved[place, other]) for place, one, other in pairs])
    assert (found / torch.tensor(deviations(plain, ids.tolist(), pairs))).abs().max() < 4
    assert (logits_of_kernels(plain, ids) - wanted).abs().max() <= 1e-4 * max(1.0, float(wanted.abs().max()))
