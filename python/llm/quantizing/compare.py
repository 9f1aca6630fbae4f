"""Compares the predictions of two models on the same text."""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.settings.model import ModelConfig

_CHUNK_TOKENS = 512


@dataclass
class Head:
    """What turns the residual stream into logits.

    Attributes:
        norm: The last norm.
        weight: The output projection, `[V, C]`.
        config: Scale and bound of the logits.
    """

    norm: nn.Module
    weight: Tensor
    config: ModelConfig

    def logprobs(self, hidden: Tensor) -> Tensor:
        """Returns log-probabilities of all tokens, fp32 `[T, V]`."""
        logits = F.linear(self.norm(hidden) * self.config.logit_scale, self.weight)
        cap = self.config.final_logit_softcapping
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        return logits.log_softmax(-1)


@dataclass(frozen=True)
class Comparison:
    """Means over the tokens of a text.

    Attributes:
        kl: Kullback-Leibler divergence from the original's distribution to the quantised model's, in nats a token.
        perplexity: The quantised model's perplexity.
        original_perplexity: The original's perplexity.
        same_choice: Share of tokens after which both hold the same token for likeliest.
        num_tokens: Number of tokens.
    """

    kl: float
    perplexity: float
    original_perplexity: float
    same_choice: float
    num_tokens: int


def copied(norm: nn.Module) -> nn.Module:
    """Returns a copy of a norm that keeps its values when the model's are replaced."""
    return copy.deepcopy(norm)


def compare(heads: tuple[Head, Head], streams: tuple[Tensor, Tensor], ids: Tensor) -> Comparison:
    """Compares two models on windows of text.

    Args:
        heads: Of the original and of the quantised model.
        streams: Their residual streams after the last block, `[N, T, C]` each.
        ids: The tokens, int64 `[N, T]`.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    for window, tokens in enumerate(ids):
        for start in range(0, len(tokens), _CHUNK_TOKENS):
            span = slice(start, start + _CHUNK_TOKENS)
            first, second = (head.logprobs(stream[window, span]) for head, stream in zip(heads, streams, strict=True))
            kl = (first.exp() * (first - second)).sum(-1)
            labels = tokens[start + 1 : start + _CHUNK_TOKENS + 1, None]
            losses = (-one[: len(labels)].gather(1, labels).sum() for one in (first, second))
            same = (first.argmax(-1) == second.argmax(-1)).sum()
            sums += torch.stack((kl.sum(), *losses, same)).double()
    predicted = len(ids) * (ids.shape[1] - 1)
    kl_sum, original, quantised, same = sums.tolist()
    return Comparison(
        kl_sum / ids.numel(),
        math.exp(quantised / predicted),
        math.exp(original / predicted),
        same / ids.numel(),
        ids.numel(),
    )
