"""Losses on answers that the model drew, and what each answer is worth beside the others of its group."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm.data import IGNORED_LABEL, RolloutBatch
from llm.settings.grpo import GrpoConfig

_SPREAD = 1e-4  # added to a group's spread


def advantages(rewards: NDArray[np.float64], settings: GrpoConfig) -> NDArray[np.float64]:
    """Returns how much better each answer of a group is than the others.

    Source: Shao et al. 2024, "DeepSeekMath", section 4.1.2 (the group's mean, over its spread); Liu et al. 2025,
    "Understanding R1-Zero-Like Training", section 3.2 (without the spread); Ahmadian et al. 2024, "Back to Basics",
    equation 8 (the mean of all others).

    Args:
        rewards: `[G]`, at least two.
        settings: The loss, and whether advantages are scaled.
    """
    centred: NDArray[np.float64] = rewards - rewards.mean()
    if settings.loss == "rloo":
        centred *= len(rewards) / (len(rewards) - 1)
    if settings.is_scaled:
        centred /= rewards.std(ddof=1) + _SPREAD
    return centred


@dataclass(frozen=True)
class PolicyLoss:
    """The loss of a batch, and what to report of it.

    Attributes:
        sum: Sum that is divided by the batch's number of targets, with gradient.
        clipped: Number of tokens, for rloo of answers, whose ratio is clipped.
        num_ratios: Number of ratios.
        divergence: Sum of the tokens' divergences from the reference; 0 without one.
    """

    sum: Tensor
    clipped: float
    num_ratios: int
    divergence: float


def count_targets(batch: RolloutBatch, settings: GrpoConfig) -> int:
    """Returns what the sum of the loss is divided by: tokens for dapo, answers for all others."""
    return batch.num_tokens if settings.loss == "dapo" else batch.num_answers


def policy_loss(logprobs: Tensor, batch: RolloutBatch, settings: GrpoConfig) -> PolicyLoss:
    """Returns the clipped loss of answers and their divergence from the reference.

    Source: Shao et al. 2024, "DeepSeekMath", equations 3 and 4 (grpo and the divergence); Liu et al. 2025,
    "Understanding R1-Zero-Like Training", section 3.2 (dr_grpo); Yu et al. 2025, "DAPO", equations 8 and 10 (dapo, and
    bounds of their own above and below); Ahmadian et al. 2024, "Back to Basics", section 3 (rloo).

    Args:
        logprobs: The model's log-probability of each label, fp32 `[T]`, 0 where it is ignored; with gradient.
        batch: The answers.
        settings: Which loss, and its numbers.
    """
    is_learnt = (batch.labels != IGNORED_LABEL).to(logprobs.dtype)
    sequence = batch.sequence_of
    count = len(batch.lengths)
    change = (logprobs - batch.old_logprobs) * is_learnt
    if settings.loss == "rloo":
        ratios = _summed(change, sequence, count).exp()
        losses, is_clipped = _clipped(ratios, batch.advantages, settings)
        total = (losses * batch.weights).sum()
        return PolicyLoss(total, float((is_clipped * batch.weights).sum()), count, 0.0)
    ratios = change.exp()
    losses, is_clipped = _clipped(ratios, batch.advantages[sequence], settings)
    divergence = torch.zeros_like(logprobs)
    if batch.reference_logprobs is not None:
        distance = (batch.reference_logprobs - logprobs) * is_learnt
        divergence = distance.exp() - distance - 1
        losses = losses + settings.kl_coefficient * divergence
    is_learnt = is_learnt * batch.weights[sequence]
    losses = losses * is_learnt
    if settings.loss == "grpo":
        lengths = _summed(is_learnt, sequence, count).clamp_min(1)
        losses = losses / lengths[sequence]
    total = losses.sum()
    if settings.loss == "dr_grpo":
        total = total / settings.max_answer_tokens
    clipped, apart = ((one.detach() * is_learnt).sum() for one in (is_clipped, divergence))
    return PolicyLoss(total, float(clipped), int(is_learnt.sum()), float(apart))


def _clipped(ratios: Tensor, gains: Tensor, settings: GrpoConfig) -> tuple[Tensor, Tensor]:
    """Returns the loss of each ratio, and 1 where it is clipped, else 0."""
    lower, upper = 1 - settings.clip, 1 + settings.upper_clip
    losses = -torch.min(ratios * gains, ratios.clamp(lower, upper) * gains)
    is_clipped = ((ratios < lower) & (gains < 0)) | ((ratios > upper) & (gains > 0))
    return losses, is_clipped.to(ratios.dtype)


def _summed(values: Tensor, sequence: Tensor, count: int) -> Tensor:
    """Returns the sum of each sequence, `[S]`."""
    return values.new_zeros(count).index_add(0, sequence, values)
