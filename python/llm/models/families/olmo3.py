"""OLMo 3: OLMo 2 with a sliding window in three of four layers, whose rotary positions are never scaled."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import LLAMA_TOP, Family, Values, read_sizes
from llm.models.families.cuts import layer_types_of, usual, written_types
from llm.models.families.olmo2 import BLOCK, read_parts
from llm.models.families.olmo2 import write as write_olmo2
from llm.models.families.rope import read_two_ropes, write_two_ropes
from llm.settings.model import ModelConfig


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    values = usual(values, {"sliding_window": 4096})
    sizes = read_sizes({key: value for key, value in values.items() if not key.startswith("rope_")})
    windows = {"sliding_window": values["sliding_window"], "layer_types": layer_types_of(values, 4)}
    return sizes | read_two_ropes(values, 500_000.0, None) | read_parts(values) | windows


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    windows = {"sliding_window": config.sliding_window, "layer_types": written_types(config)}
    return write_olmo2(config) | write_two_ropes(config) | windows


FAMILY = Family("olmo3", "Olmo3ForCausalLM", read, write, LLAMA_TOP, BLOCK)
