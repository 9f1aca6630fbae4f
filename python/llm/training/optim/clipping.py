"""The limit of the gradients' norm."""

import torch
from torch import nn

from llm.training.distributed import whole


def clip_gradients(model: nn.Module, max_norm: float | None) -> float:
    """Scales gradients to a global norm of at most `max_norm` (None: no limit) and returns the norm before scaling."""
    limit = float("inf") if max_norm is None else max_norm
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    return float(whole(norm))
