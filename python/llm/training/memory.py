"""Words for memory that is not enough: what needs it, and which setting saves how much."""

import contextlib
from collections.abc import Iterator

import msgspec
import torch

from llm.checkpoint.space import in_words
from llm.errors import TrainingError
from llm.models.costs import MemoryEstimate, estimate_memory
from llm.models.device import is_out_of_memory
from llm.settings.run import RunConfig


@contextlib.contextmanager
def explains_out_of_memory(
    config: RunConfig, dtype: torch.dtype, world_size: int, device: str = "cuda"
) -> Iterator[None]:
    """Turns PyTorch's error for lack of memory into a `TrainingError` that names the settings to change.

    Args:
        config: Settings of the run.
        dtype: Number type of matrix products.
        world_size: Number of processes.
        device: Type of the device.

    Raises:
        TrainingError: Memory is not enough.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"out of memory: {error}\nhint: {_advice(config, dtype, world_size, device)}") from error


def _advice(config: RunConfig, dtype: torch.dtype, world_size: int, device: str) -> str:
    if config.training.task != "lm":
        return "lower `training.batch_size` or the model's size"
    needed = _estimate(config, dtype, world_size, device)
    state = needed.weights + needed.gradients + needed.optimizer
    words = (
        f"a process needs about {in_words(needed.total)}, {in_words(state)} of it for weights, gradients and optimizer "
        f"and {in_words(needed.activations)} for {_sequences(config, world_size)} × {config.context_length:,} tokens"
    )
    ways = [
        f"`{name}` needs {in_words(less.total)}"
        for name, other in _alternatives(config, world_size)
        if (less := _estimate(other, dtype, world_size, device)).total < 0.95 * needed.total
    ]
    return f"{words}; {', '.join(ways)}" if ways else f"{words}; use a smaller model or `training.sharding`"


def _alternatives(config: RunConfig, world_size: int) -> Iterator[tuple[str, RunConfig]]:
    """Yields settings that need less memory, those that don't change what is learnt first."""
    training = config.training
    passes = 2 * training.gradient_accumulation_steps
    if _sequences(config, world_size) > 1:
        yield f"training.gradient_accumulation_steps={passes}", _with(config, gradient_accumulation_steps=passes)
    if not training.gradient_checkpointing:
        yield "training.gradient_checkpointing=true", _with(config, gradient_checkpointing=True)
    half = config.context_length // 2
    data = msgspec.structs.replace(config.data, context_length=half)
    if half:
        yield f"data.context_length={half}", msgspec.structs.replace(config, data=data)


def _with(config: RunConfig, **training: object) -> RunConfig:
    return msgspec.structs.replace(config, training=msgspec.structs.replace(config.training, **training))


def _estimate(config: RunConfig, dtype: torch.dtype, world_size: int, device: str) -> MemoryEstimate:
    return estimate_memory(
        config.model,
        _sequences(config, world_size),
        config.context_length,
        dtype,
        gradient_checkpointing=config.training.gradient_checkpointing,
        device=device,
    )


def _sequences(config: RunConfig, world_size: int) -> int:
    """Sequences of one forward pass."""
    return -(-config.training.batch_size // (config.training.gradient_accumulation_steps * world_size))
