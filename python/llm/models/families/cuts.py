"""Cuts and patterns that several families share."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llm.models.families.base import BlockCut, Piece, Values
from llm.settings.model import ModelConfig


def halves(width: int) -> Tensor:
    """Returns the rows of interleaved pairs in the order of two halves."""
    return torch.arange(width).view(-1, 2).T.flatten()


def interleaved() -> dict[str, BlockCut]:
    """Returns the cuts of queries, keys and values whose rotated pairs are neighbours on disk."""

    def cut(leaf: str) -> BlockCut:
        def pieces(ours: Tensor, config: ModelConfig) -> list[Piece]:
            width, rotated = config.head_width, config.rotary_width
            head = torch.cat((halves(rotated), torch.arange(rotated, width)))
            heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
            parts = torch.split(ours, [width * count for count in heads])
            rows = [(torch.arange(count)[:, None] * width + head).flatten() for count in heads[:2]]
            names = [f"self_attn.{part}_proj.{leaf}" for part in "qkv"]
            return [Piece(name, part, order) for name, part, order in zip(names, parts, [*rows, None], strict=True)]

        return BlockCut(pieces)

    return {f"attention.qkv_proj.{leaf}": cut(leaf) for leaf in ("weight", "bias")}


def layer_types_of(values: Mapping[str, Any], every: Any) -> list[str]:
    """Returns `layer_types`, by default `full_attention` in each `every`-th layer and a window in the others."""
    given = values.get("layer_types")
    if given is not None:
        return list(given)
    layers = range(1, values["num_hidden_layers"] + 1)
    return ["sliding_attention" if layer % every else "full_attention" for layer in layers]


def written_types(config: ModelConfig) -> list[str]:
    """Returns the attention type of each layer."""
    usual = "full_attention" if config.sliding_window is None else "sliding_attention"
    return list(config.layer_types or (usual,) * config.num_hidden_layers)


def full_layers(types: list[str]) -> list[int]:
    """Returns the layers without a window."""
    return [layer for layer, kind in enumerate(types) if kind == "full_attention"]


def usual(values: Mapping[str, Any], defaults: Values) -> Values:
    """Returns the values of `config.json`, with a family's defaults where they are missing or null."""
    return defaults | {key: value for key, value in values.items() if value is not None}
