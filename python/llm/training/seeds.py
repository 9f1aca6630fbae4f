"""Random numbers of a step."""

import numpy as np
import torch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds the random numbers of a step (dropout) by seed, step and rank only; step -1 draws the weights."""
    key = np.random.SeedSequence([seed, step + 1, rank if step >= 0 else 0]).generate_state(1, np.uint64)
    _seed(int(key[0]) >> 1)


def _seed(value: int) -> None:
    """Does what `torch.manual_seed` does, without its millisecond for notes on devices that this machine lacks."""
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(value)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(value)
