"""Losses that prefer answers to others; each is a function of the answers' log-probabilities."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.settings.preference import PreferenceConfig


@dataclass(frozen=True)
class Answers:
    """Answers, one for each of `N` prompts.

    Attributes:
        totals: Log-probability of each whole answer, fp32 `[N]`.
        num_tokens: Tokens of each answer, `[N]`.
        reference: `totals` by the model that the run started from, without gradient; None if the loss needs none.
    """

    totals: Tensor
    num_tokens: Tensor
    reference: Tensor | None = None

    @property
    def means(self) -> Tensor:
        """Log-probability of each answer per token."""
        return self.totals / self.num_tokens

    @property
    def gains(self) -> Tensor:
        """Log-probability of each answer over that by the reference."""
        assert self.reference is not None  # noqa: S101 (the loss needs it)
        return self.totals - self.reference

    def every_other(self, first: int) -> "Answers":
        """Returns every second answer, from the first or from the second one on."""
        reference = None if self.reference is None else self.reference[first::2]
        return Answers(self.totals[first::2], self.num_tokens[first::2], reference)


class PairLosses(NamedTuple):
    """Loss of each pair, and rewards of its answers without gradient, fp32 `[N]`."""

    losses: Tensor
    chosen: Tensor
    rejected: Tensor


def pair_losses(chosen: Answers, rejected: Answers, settings: PreferenceConfig) -> PairLosses:
    """Returns the losses of pairs, with gradient.

    Args:
        chosen: The better answers.
        rejected: The worse answers to the same prompts.
        settings: Names the loss and its numbers.
    """
    return _PAIR_LOSSES[settings.loss](chosen, rejected, settings)


def _dpo(chosen: Answers, rejected: Answers, settings: PreferenceConfig) -> PairLosses:
    """Direct preference optimisation, with smoothed labels.

    Source: Rafailov et al. 2023, "Direct Preference Optimization", equation 7; Mitchell 2023, "A note on DPO with noisy
    preferences and relationship to IPO", equation 3 (conservative DPO).
    """
    margin = settings.strength * (chosen.gains - rejected.gains)
    smoothing = settings.label_smoothing
    losses = -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
    return PairLosses(losses, *_rewards(settings, chosen.gains, rejected.gains))


def _ipo(chosen: Answers, rejected: Answers, settings: PreferenceConfig) -> PairLosses:
    """Identity preference optimisation, with gains per token, so that long answers weigh no more than short ones.

    Source: Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences", equation
    17.
    """
    margin = chosen.gains / chosen.num_tokens - rejected.gains / rejected.num_tokens
    losses = (margin - 1 / (2 * settings.strength)).square()
    return PairLosses(losses, *_rewards(settings, chosen.gains, rejected.gains))


def _simpo(chosen: Answers, rejected: Answers, settings: PreferenceConfig) -> PairLosses:
    """Simple preference optimisation: mean log-probabilities in place of a reference, and a margin between them.

    Source: Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward", equation 6.
    """
    losses = -F.logsigmoid(settings.strength * (chosen.means - rejected.means - settings.gamma_ratio))
    return PairLosses(losses, *_rewards(settings, chosen.means, rejected.means))


def _orpo(chosen: Answers, rejected: Answers, settings: PreferenceConfig) -> PairLosses:
    """Odds ratio preference optimisation: the likelihood of the chosen answer, and the odds of both.

    Source: Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model", equations 6 and 7.
    """
    odds = [one.means - _log1mexp(one.means) for one in (chosen, rejected)]
    losses = -chosen.means - settings.strength * F.logsigmoid(odds[0] - odds[1])
    return PairLosses(losses, *_rewards(settings, chosen.means, rejected.means))


def _rewards(settings: PreferenceConfig, *values: Tensor) -> tuple[Tensor, ...]:
    return tuple(settings.strength * one.detach() for one in values)


_PAIR_LOSSES: dict[str, Callable[[Answers, Answers, PreferenceConfig], PairLosses]] = {
    "dpo": _dpo,
    "ipo": _ipo,
    "simpo": _simpo,
    "orpo": _orpo,
}


def kto_losses(answers: Answers, is_wanted: Tensor, divergence: Tensor, settings: PreferenceConfig) -> Tensor:
    """Returns the Kahneman-Tversky loss of single answers, with gradient, fp32 `[N]`.

    Source: Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", equation 8.

    Args:
        answers: The answers.
        is_wanted: bool `[N]`.
        divergence: Estimate of the divergence from the reference, at least 0, without gradient; a scalar.
        settings: β and the weights.
    """
    sign = torch.where(is_wanted, 1.0, -1.0)
    weights = torch.where(is_wanted, settings.wanted_weight, settings.unwanted_weight)
    return weights * (1 - torch.sigmoid(sign * settings.strength * (answers.gains - divergence)))


def reward_losses(chosen: Tensor, rejected: Tensor, margins: Tensor, settings: PreferenceConfig) -> Tensor:
    """Returns the losses of pairs of rewards, with gradient, fp32 `[N]`.

    Source: Bradley and Terry 1952, "Rank Analysis of Incomplete Block Designs"; Touvron et al. 2023, "Llama 2",
    equation 2 (margins); Eisenstein et al. 2023, "Helping or Herding?", equation 2 (centred rewards).

    Args:
        chosen: Rewards of the better answers, fp32 `[N]`.
        rejected: Rewards of the worse answers.
        margins: By how much the better ones are better; 0 without margins.
        settings: The weight of the square that keeps rewards about 0.
    """
    losses = -F.logsigmoid(chosen - rejected - margins)
    return losses + settings.centering * (chosen + rejected).square() if settings.centering else losses


def _log1mexp(values: Tensor) -> Tensor:
    """Returns `log(1 - exp(x))` of negative numbers, by whichever of two forms is exact.

    Source: Mächler 2012, "Accurately computing log(1 - exp(-|a|))", equation 7.
    """
    values = values.clamp_max(-torch.finfo(values.dtype).tiny)
    is_near = values > -0.6931471805599453  # -log 2
    # The form that isn't taken must have a finite gradient as well.
    near = torch.log(-torch.expm1(torch.where(is_near, values, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(is_near, -1.0, values)))
    return torch.where(is_near, near, far)
