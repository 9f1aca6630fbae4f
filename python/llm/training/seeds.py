"""Random numbers of a step."""

import numpy as np
import torch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds the random numbers of a step (dropout) by seed, step and rank only; step -1 draws the weights."""
    key = np.random.SeedSequence([seed, step + 1, rank if step >= 0 else 0]).generate_state(1, np.uint64)
    torch.manual_seed(int(key[0]) >> 1)
