"""Gemma 2: norms before and after each part, capped scores and logits, a sliding window in every other layer."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import LLAMA_BLOCK, LLAMA_TOP, Family, Values, read_sizes, require, write_sizes
from llm.settings.model import ModelConfig

_DEFAULTS = {
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}
_CAPS = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    # Where an older config has both keys, the newer one counts.
    act = values.get("hidden_activation") or "gelu_pytorch_tanh"
    require({"hidden_activation": act, **values}, {"hidden_activation": ("gelu_pytorch_tanh",)})
    require(values, {"use_bidirectional_attention": (False,)})
    values = _DEFAULTS | dict(values)
    layers = range(values["num_hidden_layers"])
    types = values.get("layer_types") or ["full_attention" if layer % 2 else "sliding_attention" for layer in layers]
    bias = bool(values.get("attention_bias", False))
    return (
        read_sizes(values)
        | {key: values[key] for key in _CAPS}
        | {
            "attention_bias": bias,
            "attention_output_bias": bias,
            "hidden_act": "gelu_pytorch_tanh",
            "norm": "offset_rms_norm",
            "norm_placement": "both",
            "scale_embeddings": True,
            "sliding_window": values["sliding_window"],
            "layer_types": list(types),
        }
    )


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    types = config.layer_types or ("sliding_attention",) * config.num_hidden_layers
    caps = {key: getattr(config, key) for key in _CAPS} | {
        "query_pre_attn_scalar": int(config.query_pre_attn_scalar or config.head_width)
    }
    return (
        write_sizes(config)
        | caps
        | {
            "attention_bias": config.attention_bias,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_act": "gelu_pytorch_tanh",
            "sliding_window": config.sliding_window,
            "layer_types": list(types),
        }
    )


BLOCK = LLAMA_BLOCK | {
    "norm2": "pre_feedforward_layernorm",
    "post_norm1": "post_attention_layernorm",
    "post_norm2": "post_feedforward_layernorm",
}
FAMILY = Family("gemma2", "Gemma2ForCausalLM", read, write, LLAMA_TOP, BLOCK)
