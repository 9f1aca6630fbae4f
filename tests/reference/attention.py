"""Attention as its definition says, with a whole matrix of scores."""

import torch
from torch import Tensor

from llm.models.layers.attend import AttentionRule


def attention_by_definition(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], rule: AttentionRule
) -> Tensor:
    """`[T, H, D]` queries over `[T, K, D]` keys and values, for each token and head on its own."""
    groups = query.shape[1] // key.shape[1]
    output = torch.zeros(*query.shape[:2], value.shape[-1])
    start = 0
    for length in lengths:
        for place in range(length):
            first = 0 if rule.window is None else max(place - rule.window + 1, 0)
            seen = slice(start + first, start + place + 1)
            for head in range(query.shape[1]):
                scores = key[seen, head // groups] @ query[start + place, head] * rule.scale
                if rule.softcap is not None:
                    scores = rule.softcap * torch.tanh(scores / rule.softcap)
                output[start + place, head] = scores.softmax(0) @ value[seen, head // groups]
        start += length
    return output
