"""The limit of the gradients' norm."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from llm.training.distributed import whole
from llm.training.optim.cpu_adamw import CpuAdamW


def clip_gradients(optimizer: Optimizer, parameters: Sequence[Tensor], max_norm: float | None) -> float:
    """Scales gradients to a global norm of at most `max_norm` (None: no limit) and returns the norm before scaling.

    An optimizer that scales them in its step does so, and leaves them as they are.
    """
    if isinstance(optimizer, CpuAdamW):
        return optimizer.clip(max_norm)
    norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
    found = float(whole(norm))
    if max_norm is not None and not found + 1e-6 <= max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return found
