"""Command R7B and A: attention beside the feed-forward, layer norms without bias, no positions without a window."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import LLAMA_BLOCK, LLAMA_TOP, Family, Values, read_activation, read_sizes, write_sizes
from llm.models.families.cuts import full_layers, interleaved, layer_types_of, usual, written_types
from llm.settings.model import ModelConfig

_DEFAULTS = {
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "tie_word_embeddings": True,
}


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    values = usual(values, _DEFAULTS)
    types = layer_types_of(values, values["sliding_window_pattern"])
    bias = bool(values.get("attention_bias", False))
    return read_sizes(values) | {
        "hidden_act": read_activation(values),
        "attention_bias": bias,
        "attention_output_bias": bias,
        "norm": "layer_norm_no_bias",
        "rms_norm_eps": values["layer_norm_eps"],
        "parallel_block": True,
        "logit_scale": values["logit_scale"],
        "sliding_window": values["sliding_window"],
        "layer_types": types,
        "unrotated_layers": full_layers(types),
    }


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    values = {key: value for key, value in write_sizes(config).items() if key != "rms_norm_eps"}
    return values | {
        "hidden_act": config.hidden_act or "silu",
        "attention_bias": config.attention_bias,
        "layer_norm_eps": config.rms_norm_eps,
        "logit_scale": config.logit_scale,
        "sliding_window": config.sliding_window,
        "layer_types": written_types(config),
    }


FAMILY = Family("cohere2", "Cohere2ForCausalLM", read, write, LLAMA_TOP, LLAMA_BLOCK | interleaved())
