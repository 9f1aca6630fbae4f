"""Losses on drawn answers, one answer and one token at a time, as the papers write them."""

import math

import torch
from torch import Tensor


def advantages_by_answer(rewards: list[float], loss: str) -> list[float]:
    """DeepSeekMath 4.1.2 (grpo, dapo), Understanding R1-Zero-Like Training 3.2 (dr_grpo), Back to Basics 8 (rloo)."""
    found = []
    for idx, reward in enumerate(rewards):
        others = [value for number, value in enumerate(rewards) if number != idx]
        mean = sum(others) / len(others) if loss == "rloo" else sum(rewards) / len(rewards)
        found.append(reward - mean)
    if loss in ("grpo", "dapo"):
        mean = sum(rewards) / len(rewards)
        spread = math.sqrt(sum((value - mean) ** 2 for value in rewards) / (len(rewards) - 1))
        found = [value / (spread + 1e-4) for value in found]
    return found


def clipped_term(ratio: Tensor, gain: float, low: float, high: float) -> Tensor:
    """min(r A, clip(r) A)."""
    value = ratio.item()
    bounded = min(max(value, 1 - low), 1 + high)
    return ratio * gain if value * gain <= bounded * gain else torch.tensor(bounded * gain, dtype=ratio.dtype)


def policy_loss_by_token(
    answers: list[dict[str, Tensor]], gains: list[float], loss: str, kl: float, low: float, high: float, longest: int
) -> Tensor:
    """The loss to minimise; each answer has `new`, `old` and `reference` log-probabilities of its tokens."""
    objectives = []
    for answer, gain in zip(answers, gains, strict=True):
        if loss == "rloo":
            ratio = torch.exp(sum(answer["new"]) - sum(answer["old"]))
            objectives.append([clipped_term(ratio, gain, low, high)])
            continue
        terms = []
        for new, old, reference in zip(answer["new"], answer["old"], answer["reference"], strict=True):
            divergence = torch.exp(reference - new) - (reference - new) - 1
            terms.append(clipped_term(torch.exp(new - old), gain, low, high) - kl * divergence)
        objectives.append(terms)
    if loss == "dapo":
        return -sum(sum(terms) for terms in objectives) / sum(map(len, objectives))
    if loss == "dr_grpo":
        return -sum(sum(terms) / longest for terms in objectives) / len(objectives)
    return -sum(sum(terms) / len(terms) for terms in objectives) / len(objectives)
