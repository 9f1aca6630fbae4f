"""GPT-2: learned positions, layer norms, biases in every layer, matrices stored transposed."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import BlockCut, Family, Values, read_activation, require, transposed
from llm.settings.model import ModelConfig

_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "rms_norm_eps": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
    "dropout": "resid_pdrop",
    "attention_dropout": "attn_pdrop",
}
_DEFAULTS = {"layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "resid_pdrop": 0.1, "attn_pdrop": 0.1}
_ACTIVATION = "activation_function"


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`."""
    values = _DEFAULTS | {key: value for key, value in values.items() if value is not None}
    fixed = {
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    require(values, fixed | {"embd_pdrop": (values["resid_pdrop"],)})
    return {ours: values[theirs] for ours, theirs in _NAMES.items() if theirs in values} | {
        "intermediate_size": values.get("n_inner") or 4 * values["n_embd"],
        "hidden_act": read_activation(values, _ACTIVATION, "gelu_new"),
        "tie_word_embeddings": bool(values.get("tie_word_embeddings", True)),
        "attention_bias": True,
        "attention_output_bias": True,
        "mlp": "gelu",
        "mlp_bias": True,
        "norm": "layer_norm",
        "position_encoding": "learned",
    }


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    act = "gelu_new" if config.hidden_act == "gelu_pytorch_tanh" else config.hidden_act or "gelu"
    return {theirs: getattr(config, ours) for ours, theirs in _NAMES.items()} | {
        "n_inner": config.intermediate_size,
        _ACTIVATION: act,
        "embd_pdrop": config.dropout,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


TOP = {
    "embed_tokens": "transformer.wte",
    "positions": "transformer.wpe",
    "norm": "transformer.ln_f",
    "lm_head": "lm_head",
}
BLOCK: dict[str, str | tuple[str, ...] | BlockCut] = {
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attention.qkv_proj.weight": transposed("attn.c_attn.weight"),
    "attention.qkv_proj.bias": transposed("attn.c_attn.bias"),
    "attention.o_proj.weight": transposed("attn.c_proj.weight"),
    "attention.o_proj.bias": transposed("attn.c_proj.bias"),
    "mlp.up_proj.weight": transposed("mlp.c_fc.weight"),
    "mlp.up_proj.bias": transposed("mlp.c_fc.bias"),
    "mlp.down_proj.weight": transposed("mlp.c_proj.weight"),
    "mlp.down_proj.bias": transposed("mlp.c_proj.bias"),
}
FAMILY = Family(
    "gpt2",
    "GPT2LMHeadModel",
    read,
    write,
    TOP,
    BLOCK,
    prefix="transformer.h.{layer}.",
    ignored=r".*\.attn\.(masked_)?bias",
    required=("vocab_size", "n_embd", "n_layer", "n_head", "n_positions"),
)
