"""Learning rates as pure functions of the step, which need no saved state and no order of calls."""

import math

from llm.settings.run import OptimizerConfig


def warmup_cosine(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Returns the learning rate of step `step` (from 0): linear warm-up, then half a cosine down to the minimum.

    If the warm-up is at least as long as the schedule, there is no decay.

    Source: Loshchilov and Hutter 2017, «SGDR», equation 5, without restarts.
    """
    peak = config.learning_rate
    lowest = peak * config.min_learning_rate_ratio
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    decay_steps = max(1, total_steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / decay_steps)
    return lowest + 0.5 * (peak - lowest) * (1.0 + math.cos(math.pi * progress))
