"""Hugging Face's families of models, one file each, and the choice of one for a model of ours."""

from collections.abc import Mapping
from typing import Any

from llm.errors import CheckpointError
from llm.models.families import (
    cohere2,
    deepseek_v2,
    deepseek_v3,
    ernie4_5,
    exaone4,
    gemma,
    gemma2,
    gemma3_text,
    glm4,
    gpt2,
    gpt_oss,
    granite,
    llama,
    ministral3,
    mistral,
    mixtral,
    olmo2,
    olmo3,
    oxide,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    seed_oss,
    smollm3,
    stablelm,
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
        deepseek_v3,
        gemma,
        gemma3_text,
        phi3,
        smollm3,
        granite,
        olmo2,
        olmo3,
        seed_oss,
        ministral3,
        ernie4_5,
        glm4,
        stablelm,
        cohere2,
        exaone4,
        gpt_oss,
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
