"""Ministral 3: Mistral whose queries grow with the position beyond the context of its first training."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import LLAMA_BLOCK, LLAMA_TOP, Family, Values, read_activation, read_sizes, write_sizes
from llm.models.families.cuts import usual
from llm.settings.model import ModelConfig

_SCALING = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    values = usual(values, {"head_dim": 128, "num_key_value_heads": 8})
    rope = values.get("rope_parameters") or values.get("rope_scaling") or _SCALING
    if isinstance(rope, Mapping):
        values["rope_parameters"] = {key: value for key, value in rope.items() if key != "max_position_embeddings"}
    fields = read_sizes(values) | {"hidden_act": read_activation(values)}
    return fields | {"sliding_window": values.get("sliding_window")}


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`; transformers needs a growth of queries, of which 0 changes nothing."""
    values = write_sizes(config) | {"hidden_act": config.hidden_act or "silu"}
    usual_rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    rope = {"llama_4_scaling_beta": 0.0, "original_max_position_embeddings": config.max_position_embeddings}
    rope |= values.get("rope_parameters", usual_rope)
    return values | {"rope_parameters": rope, "sliding_window": config.sliding_window}


FAMILY = Family("ministral3", "Ministral3ForCausalLM", read, write, LLAMA_TOP, LLAMA_BLOCK)
