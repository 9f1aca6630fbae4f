"""Learning rates as pure functions of the step, which need no saved state and no order of calls."""

import math
from dataclasses import dataclass

from llm.settings.run import OptimizerConfig

# Without a setting, warm-up takes a tenth of the steps, but no more than this.
_LONGEST_DEFAULT_WARMUP = 100


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step of a run: linear warm-up, a stable phase if the schedule has one, then decay.

    The last warm-up step has the peak rate. The decay would reach the lowest rate one step after the last, so no step
    of a decay to zero is wasted.

    Attributes:
        config: The optimizer's settings.
        total_steps: Steps of the whole run.
        warmup_steps: Steps of the warm-up, at most all steps.
        decay_start: First step whose rate decays; without decay, the number of all steps.

    Source: Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts (cosine); Hu et al. 2024, "MiniCPM",
    section 4 (warm-up, stable, decay); Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed
    Training Durations", section 3 (decay along 1 - sqrt).
    """

    config: OptimizerConfig
    total_steps: int
    warmup_steps: int
    decay_start: int

    @classmethod
    def of(cls, config: OptimizerConfig, total_steps: int, tokens_per_step: int = 1) -> "Schedule":
        """Returns the schedule of a run of `total_steps` steps of `tokens_per_step` tokens each."""
        warmup = min(total_steps, _warmup_steps(config, total_steps, tokens_per_step))
        return cls(config, total_steps, warmup, _decay_start(config, total_steps, warmup))

    def rate(self, step: int) -> float:
        """Returns the learning rate of step `step`, counted from 0; steps after the last keep the lowest rate."""
        peak = self.config.learning_rate
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        if self.config.schedule == "constant" or step < self.decay_start:
            return peak
        progress = min(1.0, (step - self.decay_start) / max(1, self.total_steps - self.decay_start))
        lowest = peak * self.config.min_learning_rate_ratio
        return lowest + (peak - lowest) * self._remaining(progress)

    def notices(self) -> list[str]:
        """Returns what the settings ask for and the run is too short to do."""
        found = []
        if self.warmup_steps == self.total_steps and self.total_steps > 1:
            found.append(f"the warm-up takes all {self.total_steps} steps, so the learning rate never decays")
        wanted = self.config.decay_from
        if self.config.schedule == "wsd" and wanted is not None and wanted >= self.total_steps:
            found.append(f"`optimizer.decay_from` ({wanted}) is not before the last step, so the rate never decays")
        return found

    def _remaining(self, progress: float) -> float:
        """Returns how much of the way down is left, from 1 to 0, at a share `progress` of the decay."""
        if self.config.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        if self.config.schedule == "wsd" and self.config.decay_shape == "sqrt":
            return 1.0 - math.sqrt(progress)
        return 1.0 - progress


def _warmup_steps(config: OptimizerConfig, total_steps: int, tokens_per_step: int) -> int:
    if config.warmup_steps is not None:
        return config.warmup_steps
    if config.warmup_tokens is not None:
        return math.ceil(config.warmup_tokens / tokens_per_step)
    return min(_LONGEST_DEFAULT_WARMUP, total_steps // 10)


def _decay_start(config: OptimizerConfig, total_steps: int, warmup_steps: int) -> int:
    if config.schedule != "wsd":
        return warmup_steps
    wanted = config.decay_from
    if wanted is None:
        wanted = total_steps - round(config.decay_fraction * total_steps)
    return max(warmup_steps, wanted)
