"""Phi-3 and Phi-4: Llama with fused projections on disk, and rotary positions on a part of each head if asked."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import (
    LLAMA_BLOCK,
    LLAMA_TOP,
    Family,
    Values,
    read_activation,
    read_sizes,
    require,
    write_sizes,
)
from llm.settings.model import ModelConfig


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`; the published code computes `yarn` as `longrope`."""
    scaling = values.get("rope_parameters") or values.get("rope_scaling")
    if isinstance(scaling, Mapping) and "yarn" in (scaling.get("rope_type"), scaling.get("type")):
        renamed = {key: value for key, value in scaling.items() if key != "type"}
        values = {**values, "rope_parameters": renamed | {"rope_type": "longrope"}}
    require(values, {"attention_bias": (False,), "mlp_bias": (False,)})
    fields = read_sizes(values, partial=1.0) | {"hidden_act": read_activation(values)}
    return fields | {"sliding_window": values.get("sliding_window")}


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`; the family's usual padding is an id that small vocabularies lack."""
    values = write_sizes(config) | {"hidden_act": config.hidden_act or "silu"}
    return values | {"sliding_window": config.sliding_window, "pad_token_id": None}


BLOCK = LLAMA_BLOCK | {"attention.qkv_proj": "self_attn.qkv_proj", "mlp.gate_up_proj": "mlp.gate_up_proj"}
FAMILY = Family("phi3", "Phi3ForCausalLM", read, write, LLAMA_TOP, BLOCK)
