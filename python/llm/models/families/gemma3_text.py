"""Gemma 3 (text): Gemma 2 with norms of queries and keys, without caps, and a rotary base for layers with a window."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import LLAMA_TOP, QK_NORMS, Family, Values, read_sizes, require, write_sizes
from llm.models.families.cuts import layer_types_of, usual, written_types
from llm.models.families.gemma2 import BLOCK as GEMMA2_BLOCK
from llm.models.families.rope import read_two_ropes, write_two_ropes
from llm.settings.model import ModelConfig

_TANH = "gelu_pytorch_tanh"
_DEFAULTS = {
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
_CAPS = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    require(values, {"hidden_activation": (_TANH,), "use_bidirectional_attention": (False,)})
    values = usual(values, _DEFAULTS)
    bias = bool(values.get("attention_bias", False))
    sizes = read_sizes({key: value for key, value in values.items() if not key.startswith("rope_")})
    return (
        sizes
        | read_two_ropes(values, 1_000_000.0, 10_000.0)
        | {key: values.get(key) for key in _CAPS}
        | {
            "attention_bias": bias,
            "attention_output_bias": bias,
            "hidden_act": _TANH,
            "norm": "offset_rms_norm",
            "norm_placement": "both",
            "qk_norm": True,
            "qk_norm_type": "offset",
            "scale_embeddings": True,
            "sliding_window": values["sliding_window"],
            "layer_types": layer_types_of(values, values["sliding_window_pattern"]),
        }
    )


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    caps = {key: getattr(config, key) for key in _CAPS}
    return (
        write_sizes(config)
        | write_two_ropes(config)
        | caps
        | {
            "query_pre_attn_scalar": int(config.query_pre_attn_scalar or config.head_width),
            "attention_bias": config.attention_bias,
            "hidden_activation": _TANH,
            "sliding_window": config.sliding_window,
            "layer_types": written_types(config),
        }
    )


BLOCK = GEMMA2_BLOCK | QK_NORMS
FAMILY = Family("gemma3_text", "Gemma3ForCausalLM", read, write, LLAMA_TOP, BLOCK)
