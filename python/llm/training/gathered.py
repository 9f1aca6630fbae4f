"""A whole copy of a model that is sharded over processes, for the time in which answers are drawn."""

import torch
from torch import nn

from llm.models import DecoderModel
from llm.models.hf import empty_model, place
from llm.models.layers.lora import AdaptedLinear, whole_weight
from llm.training.distributed import whole
from llm.training.parallel import reshard


@torch.no_grad()
def gathered(model: DecoderModel, dtype: torch.dtype) -> DecoderModel:
    """Returns a model of its own memory with the weights that a sharded one has now, adapters merged into them.

    All processes must call it at once. Tensors are gathered one by one, so beside the copy no more than the largest of
    them is needed.

    Args:
        model: The sharded model.
        dtype: Number type of the copy: the one that the passes of the sharded model gather blocks in.
    """
    reshard(model)
    copy = empty_model(model.config).eval().requires_grad_(False)
    for name, _ in list(copy.named_parameters()):
        path, _, leaf = name.rpartition(".")
        layer = model.get_submodule(path)
        is_adapted = leaf == "weight" and isinstance(layer, AdaptedLinear)
        tensor = whole_weight(layer, whole) if is_adapted else whole(layer.get_parameter(leaf).detach())
        place(copy, name, nn.Parameter(tensor.to(dtype), requires_grad=False))
    if model.config.tie_word_embeddings:
        copy.lm_head.weight = copy.embed_tokens.weight
    return copy
