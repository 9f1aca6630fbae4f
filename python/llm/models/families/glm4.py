"""GLM-4: norms on both sides, rotary positions on half of each head, whose pairs are neighbours on disk."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import LLAMA_BLOCK, LLAMA_TOP, Family, Values, read_activation, read_sizes, write_sizes
from llm.models.families.cuts import interleaved, usual
from llm.settings.model import ModelConfig

_DEFAULTS = {"head_dim": 128, "num_key_value_heads": 2, "rms_norm_eps": 1.5625e-7}


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    values = usual(values, _DEFAULTS)
    fields = {"attention_bias": bool(values.get("attention_bias", True)), "norm_placement": "both"}
    return read_sizes(values, partial=0.5) | {"hidden_act": read_activation(values)} | fields


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`, with what the family would else assume: a rotated half, an id of padding."""
    values = write_sizes(config) | {"hidden_act": config.hidden_act or "silu", "attention_bias": config.attention_bias}
    return values | {"partial_rotary_factor": config.partial_rotary_factor, "pad_token_id": None}


BLOCK = (
    LLAMA_BLOCK
    | interleaved()
    | {
        "mlp.gate_up_proj": "mlp.gate_up_proj",
        "post_norm1": "post_self_attn_layernorm",
        "post_norm2": "post_mlp_layernorm",
    }
)
FAMILY = Family("glm4", "Glm4ForCausalLM", read, write, LLAMA_TOP, BLOCK)
