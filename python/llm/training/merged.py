"""A model with adapters as the engine's kernels take it: with the adapters in its weights."""

import copy

import torch

from llm.models import DecoderModel
from llm.models.adapters import is_adapted
from llm.models.layers.cpu_training import Linear
from llm.models.layers.lora import AdaptedLinear, whole_weight


class MergedModel:
    """A copy of a model with adapters whose adapted matrices are merged; all other weights are the model's own memory.

    Args:
        model: The model; its adapted matrices must not be packed.
    """

    def __init__(self, model: DecoderModel) -> None:
        self._model = model
        shared = [*model.parameters(), *model.buffers()]
        # A weight that the copy shares stands for itself in the copy.
        self.merged: DecoderModel = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
        self._paths = [path for path, layer in model.named_modules() if isinstance(layer, AdaptedLinear)]
        for path in self._paths:
            layer = model.get_submodule(path)
            assert isinstance(layer, AdaptedLinear)  # noqa: S101
            with torch.device("meta"):
                plain = Linear(layer.in_features, layer.out_features, layer.has_bias)
            plain.weight = torch.nn.Parameter(torch.empty_like(layer.weight), requires_grad=False)
            if layer.has_bias:
                plain.bias = layer.bias
            self.merged.set_submodule(path, plain)
        self.merged.eval()

    @torch.no_grad()
    def refresh(self) -> DecoderModel:
        """Merges the adapters as they are now and returns the copy."""
        for path in self._paths:
            merged = self.merged.get_submodule(path).get_parameter("weight")
            merged.copy_(whole_weight(self._model.get_submodule(path)))
        return self.merged


def can_merge(model: DecoderModel) -> bool:
    """Returns whether a model has adapters, all of matrices that are not packed."""
    adapted = [layer for layer in model.modules() if isinstance(layer, AdaptedLinear)]
    return is_adapted(model) and all(layer.matrix is None for layer in adapted)
