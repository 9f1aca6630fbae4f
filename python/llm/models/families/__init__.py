"""Hugging Face's families of models, one file each, and the choice of one for a model of ours."""

from collections.abc import Mapping
from typing import Any

from llm.errors import CheckpointError
from llm.models.families import (
    deepseek_v2,
    gemma2,
    gpt2,
    llama,
    mistral,
    mixtral,
    oxide,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
)
from llm.models.families.base import Family, Piece
from llm.settings.model import ModelConfig

# The first that can hold a model is the one it is saved as.
FAMILIES: dict[str, Family] = {
    module.FAMILY.model_type: module.FAMILY
    for module in (
        llama,
        mistral,
        qwen2,
        qwen3,
        mixtral,
        qwen2_moe,
        qwen3_moe,
        gemma2,
        gpt2,
        deepseek_v2,
        oxide,
    )
}


def family_named(values: Mapping[str, Any]) -> Family:
    """Returns the family that a `config.json` names.

    Raises:
        CheckpointError: An unknown family, or none.
    """
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise CheckpointError(f"model_type must be one of {', '.join(FAMILIES)}, got {name!r} in config.json")
    return FAMILIES[name]


def family_of(config: ModelConfig) -> Family:
    """Returns the family to save a model as: the one its config names if that fits, else the first that fits."""
    asked = FAMILIES.get(config.family or "")
    for family in ([asked] if asked else []) + list(FAMILIES.values()):
        if not family.difference(config):
            return family
    return FAMILIES["llm_oxide"]


__all__ = ["FAMILIES", "Family", "Piece", "family_named", "family_of"]
