"""Gemma: Llama with scaled embeddings, norms that store their scale minus one, and GELU."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import LLAMA_BLOCK, LLAMA_TOP, Family, Values, read_sizes, require, write_sizes
from llm.models.families.cuts import usual
from llm.settings.model import ModelConfig

_TANH = "gelu_pytorch_tanh"


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`; `gelu` in older configs means the tanh form, which trained the models."""
    values = usual(values, {"head_dim": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": True})
    require(values, {"hidden_act": ("gelu", _TANH), "hidden_activation": (_TANH,)})
    require(values, {"use_bidirectional_attention": (False,)})
    bias = bool(values.get("attention_bias", False))
    fields = {"attention_bias": bias, "attention_output_bias": bias, "hidden_act": _TANH}
    return read_sizes(values) | fields | {"norm": "offset_rms_norm", "scale_embeddings": True}


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    acts = {"hidden_act": _TANH, "hidden_activation": _TANH}
    return write_sizes(config) | acts | {"attention_bias": config.attention_bias}


FAMILY = Family("gemma", "GemmaForCausalLM", read, write, LLAMA_TOP, LLAMA_BLOCK)
