"""Losses on preferences as the papers write them, for one pair or answer at a time, from a model's whole logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llm.models import DecoderModel, ForwardContext, positions_of
from llm.settings.preference import PreferenceConfig


def answer_logprob(model: DecoderModel, ids: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """The log-probability of the labels that are at least 0, one sequence in a pass of its own, and their number."""
    logits = model(ids, positions_of([len(ids)]), ForwardContext.for_sequences([len(ids)]))
    table = torch.log_softmax(logits.double(), dim=-1)
    chosen = [table[place, label] for place, label in enumerate(labels.tolist()) if label >= 0]
    return torch.stack(chosen).sum(), len(chosen)


def sigmoid(value: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-value))


def pair_loss(
    logprobs: Sequence[Tensor], reference: Sequence[Tensor], counts: Sequence[int], settings: PreferenceConfig
) -> Tensor:
    """The loss of one pair; each argument is of the chosen, then of the rejected answer."""
    beta = settings.strength
    ratios = [own - other for own, other in zip(logprobs, reference, strict=True)]
    means = [own / count for own, count in zip(logprobs, counts, strict=True)]
    if settings.loss == "dpo":
        share = sigmoid(beta * (ratios[0] - ratios[1]))
        return -(1 - settings.label_smoothing) * torch.log(share) - settings.label_smoothing * torch.log(1 - share)
    if settings.loss == "ipo":
        return (ratios[0] / counts[0] - ratios[1] / counts[1] - 1 / (2 * beta)) ** 2
    if settings.loss == "simpo":
        gamma = settings.gamma_ratio * beta
        return -torch.log(sigmoid(beta * means[0] - beta * means[1] - gamma))
    odds = [torch.exp(mean) / (1 - torch.exp(mean)) for mean in means]
    return -means[0] - beta * torch.log(sigmoid(torch.log(odds[0] / odds[1])))


def kto_loss(logprob: Tensor, reference: Tensor, is_wanted: bool, z0: Tensor, settings: PreferenceConfig) -> Tensor:
    """The loss λ - v of one answer."""
    gain = settings.strength * (logprob - reference - z0)
    if is_wanted:
        return settings.wanted_weight - settings.wanted_weight * sigmoid(gain)
    return settings.unwanted_weight - settings.unwanted_weight * sigmoid(-gain)
