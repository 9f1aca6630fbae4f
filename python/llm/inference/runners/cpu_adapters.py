"""Describes adapters for the CPU kernels."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm.errors import CheckpointError
from llm.inference.runners.base import AdapterLayers
from llm.models import DecoderModel
from llm.models.gguf.types import TYPES, write_values
from llm.models.layers.packed import PackedLinear, PackedMatrix, PackedPart

# Names of a block's layers in the kernels.
_NAMES = {
    "attention.qkv_proj": "qkv",
    "attention.o_proj": "out",
    "mlp.gate_up_proj": "up",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}


def check_kernel_adapter(layers: AdapterLayers) -> None:
    """Checks that the kernels can adapt the layers.

    Raises:
        CheckpointError: They can't; the error names the projection.
    """
    for path, parts in layers.items():
        if _place(path) is None:
            raise CheckpointError(
                f"the CPU kernels can't run an adapter of {parts[0][0].name}\nhint: `backend` 'torch', or `llm merge`"
            )


def kernel_adapter(model: DecoderModel, layers: AdapterLayers) -> list[dict[str, dict[str, Any]]]:
    """Returns an adapter as `llm._rust.CpuModel.set_adapter` takes it.

    First matrices get the number type of their layer's weights, Q8_0 beside packed ones. Second matrices are handed
    over in fp32; the kernels keep them in bf16 unless the layer's weights are fp32.
    """
    found: list[dict[str, dict[str, Any]]] = [{} for _ in model.layers]
    for path, parts in layers.items():
        place = _place(path)
        assert place is not None  # noqa: S101 - `check_kernel_adapter` has looked
        layer, name = place
        first = torch.cat([factors.lora_a.float() for _, factors in parts])
        found[layer][name] = {
            "first": _first(model.get_submodule(path), first),
            "parts": [
                (part.rows.start, len(own.lora_a), (own.lora_b.float() * own.scale).contiguous().flatten().numpy())
                for part, own in parts
            ],
        }
    return found


def _place(path: str) -> tuple[int, str] | None:
    """Returns the number of a layer's block, and its name in the kernels."""
    head, _, rest = path.partition(".")
    number, _, leaf = rest.partition(".")
    return (int(number), _NAMES[leaf]) if head == "layers" and leaf in _NAMES else None


def _first(layer: nn.Module, values: Tensor) -> Tensor | dict[str, Any]:
    if not isinstance(layer, PackedLinear):
        return values.to(layer.get_parameter("weight").dtype).contiguous()
    if layer.matrix.order is not None:
        values = values[:, layer.matrix.order]
    matrix = PackedMatrix.empty([PackedPart("Q8_0", len(values))], values.shape[1])
    matrix.pack(np.ascontiguousarray(write_values(values, TYPES["Q8_0"])).reshape(-1), 0)
    return matrix.for_kernels()
