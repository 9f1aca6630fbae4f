"""Granite: Llama with factors on embeddings, scores, residual sums and logits."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import LLAMA_BLOCK, LLAMA_TOP, Family, Values, read_activation, read_sizes, write_sizes
from llm.models.families.cuts import usual
from llm.settings.model import ModelConfig

_FACTORS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier")
_DEFAULTS = {"logits_scaling": 1.0, "rms_norm_eps": 1e-6, **dict.fromkeys(_FACTORS, 1.0)}


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    values = usual(values, _DEFAULTS)
    bias = bool(values.get("attention_bias", False))
    fields = {
        "hidden_act": read_activation(values),
        "attention_bias": bias,
        "attention_output_bias": bias,
        "mlp_bias": bool(values.get("mlp_bias", False)),
        "logit_scale": 1 / values["logits_scaling"],
    }
    return read_sizes(values) | fields | {key: values[key] for key in _FACTORS}


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    scale = config.attention_multiplier or (config.query_pre_attn_scalar or config.head_width) ** -0.5
    return write_sizes(config) | {
        "hidden_act": config.hidden_act or "silu",
        "attention_bias": config.attention_bias,
        "mlp_bias": bool(config.mlp_bias),
        "embedding_multiplier": config.embedding_multiplier,
        "residual_multiplier": config.residual_multiplier,
        "attention_multiplier": scale,
        # The inverse of an inverse may end in noise.
        "logits_scaling": float(f"{1 / config.logit_scale:.12g}"),
    }


FAMILY = Family("granite", "GraniteForCausalLM", read, write, LLAMA_TOP, LLAMA_BLOCK)
