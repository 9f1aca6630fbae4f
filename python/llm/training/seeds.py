"""Random numbers of a step."""

import functools

import numpy as np
import torch

_AT_ONCE = 64


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds the random numbers of a step (dropout) by seed, step and rank only; step -1 draws the weights."""
    _seed(_keys(seed, (step + 1) // _AT_ONCE, rank if step >= 0 else 0)[(step + 1) % _AT_ONCE])


@functools.lru_cache(maxsize=4)
def _keys(seed: int, window: int, rank: int) -> list[int]:
    """Returns the seeds of neighbouring steps: one alone, between the steps of a model, takes five times as long."""
    words = ([seed, window * _AT_ONCE + idx, rank] for idx in range(_AT_ONCE))
    return [int(np.random.SeedSequence(one).generate_state(1, np.uint64)[0]) >> 1 for one in words]


def _seed(value: int) -> None:
    """Does what `torch.manual_seed` does, without its millisecond for notes on devices that this machine lacks."""
    torch.default_generator.manual_seed(value)
    kind = _accelerator()
    if kind == "cuda":
        torch.cuda.manual_seed_all(value)
    elif kind == "mps":
        torch.mps.manual_seed(value)


@functools.cache
def _accelerator() -> str | None:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None
