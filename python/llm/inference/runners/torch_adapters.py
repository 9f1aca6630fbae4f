"""Adapters of some rows of a batch, added to the products of a PyTorch model's layers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llm.errors import CheckpointError
from llm.inference.runners.base import AdapterLayers
from llm.models.layers.attention import LatentAttention

_Pieces = Sequence[tuple[slice, Tensor, Tensor]]


class RowAdapters:
    """The adapters of a model in PyTorch. Each layer's own adapters are added by a hook, so any layer can have some.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers: dict[str, dict[int, _Pieces]] = {}
        self._hooks: dict[str, RemovableHandle] = {}
        self._rows: dict[int, Tensor] = {}

    def check(self, layers: AdapterLayers) -> None:
        """Checks that each layer multiplies its rows by itself.

        Raises:
            CheckpointError: One does not.
        """
        for path, parts in layers.items():
            parent = self._model.get_submodule(path.rpartition(".")[0])
            if isinstance(parent, LatentAttention) and path.endswith("kv_b_proj"):
                raise CheckpointError(
                    f"an adapter of {parts[0][0].name} can't be served, since attention takes its weights apart\n"
                    "hint: `llm merge` writes it and its base as one model"
                )

    def set(self, number: int, layers: AdapterLayers | None) -> None:
        """Sets the adapter of a number; None removes it."""
        for path in tuple(self._layers):
            self._layers[path].pop(number, None)
            if not self._layers[path]:
                del self._layers[path]
                self._hooks.pop(path).remove()
        for path, parts in (layers or {}).items():
            if path not in self._hooks:
                hook = partial(self._add, path)
                self._hooks[path] = self._model.get_submodule(path).register_forward_hook(hook)
            weight: Any = self._model
            place = {"device": weight.device, "dtype": weight.dtype}
            self._layers.setdefault(path, {})[number] = [
                (part.rows, own.lora_a.to(**place), (own.lora_b.float() * own.scale).to(**place)) for part, own in parts
            ]

    def choose(self, adapters: Tensor, query_lens: Tensor) -> None:
        """Sets the adapter of each row of the next pass, from those of its requests `[R]` and their tokens `[R]`."""
        each = adapters.repeat_interleave(query_lens)
        numbers = {number for number in adapters.tolist() if number}
        self._rows = {number: (each == number).nonzero().squeeze(1) for number in sorted(numbers)}

    def clear(self) -> None:
        """Ends the pass: rows of other passes have no adapters."""
        self._rows = {}

    def _add(self, path: str, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        for number, rows in self._rows.items():
            for span, first, second in self._layers[path].get(number, ()):
                update = F.linear(F.linear(inputs[0][rows], first), second)
                output[rows, span] += update.to(output.dtype)
        return output
