"""What a run's checkpoints hold, and whether the disk has room for them."""

from torch import nn

from llm.checkpoint import Run
from llm.checkpoint.space import free_bytes, in_words

_MOMENT_BYTES = 8  # two fp32 moments a parameter


def space_notices(run: Run, model: nn.Module, keep_checkpoints: int) -> tuple[str, ...]:
    """Returns a warning if the checkpoints to keep, and the one that is written before the oldest goes, won't fit.

    Args:
        run: The run; its checkpoints count as room, because new ones replace them.
        model: The model.
        keep_checkpoints: Number of checkpoints to keep.
    """
    own = sum(parameter.numel() * (parameter.element_size() + _MOMENT_BYTES) for parameter in _trained(model))
    there = sum(file.stat().st_size for entry in run.checkpoints() for file in entry.path.rglob("*") if file.is_file())
    needed, free = (keep_checkpoints + 1) * own - there, free_bytes(run.path)
    if needed <= free:
        return ()
    return (
        f"{keep_checkpoints + 1} checkpoints of {in_words(own)} need {in_words(needed)}, "
        f"and the disk of {run.path} has {in_words(free)}: make room, or lower `training.keep_checkpoints`",
    )


def adapter_notices(model: nn.Module) -> tuple[str, ...]:
    """Returns how many of a model's parameters are trained, if not all are."""
    trained, total = (sum(one.numel() for one in some) for some in (_trained(model), model.parameters()))
    if trained == total:
        return ()
    return (f"adapters: {trained:,} of {total:,} parameters are trained ({100 * trained / total:.2g} %)",)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
