"""Names, shapes and config on disk are Hugging Face's `LlamaForCausalLM`; fusing happens in memory."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llm.config import ModelConfig, from_builtins
from llm.errors import CheckpointError, ConfigError
from llm.models.decoder import DecoderModel

_TOP_NAMES = {"embed_tokens": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
_LAYER_NAMES = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "attention.o_proj": "self_attn.o_proj",
    "mlp.down_proj": "mlp.down_proj",
    "mlp.up_proj": "mlp.up_proj",
}
_FUSED_NAMES = {
    "attention.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
_SHARED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "initializer_range",
)
_COMPONENT_KEYS = ("attention", "mlp", "norm", "position_encoding")
_FIXED_KEYS: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "rope_scaling": (None,),
    "quantization_config": (None,),
}


def weights_to_hf(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our parameters under Hugging Face's names, fused ones split; a tied output projection is left out."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        names = _hf_names(name)
        parts = torch.split(tensor, _fused_rows(len(names), config)) if len(names) > 1 else (tensor,)
        out.update((hf_name, part.contiguous()) for hf_name, part in zip(names, parts, strict=True))
    return out


def weights_from_hf(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Hugging Face's parameters under our names, q/k/v and gate/up fused.

    Raises:
        CheckpointError: Tensors are missing, unexpected or misshaped; every one is listed.
    """
    with torch.device("meta"):
        ours = DecoderModel(config).state_dict()
    _check_shapes(tensors, weights_to_hf(ours, config), config)
    fused = {}
    for name in ours:
        source = "embed_tokens.weight" if name == "lm_head.weight" and config.tie_word_embeddings else name
        parts = [tensors[hf_name] for hf_name in _hf_names(source)]
        fused[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return fused


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a model; components no Llama has make it `model_type: llm_oxide`."""
    values: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM" if config.is_llama else "DecoderModel"],
        "model_type": "llama" if config.is_llama else "llm_oxide",
        **{key: getattr(config, key) for key in _SHARED_KEYS},
        "head_dim": config.head_width,
        "rope_theta": config.rope_theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }
    if not config.is_llama:
        values |= {key: getattr(config, key) for key in _COMPONENT_KEYS}
    return values


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Reads the `config.json` of a Llama or of a model saved here.

    Raises:
        CheckpointError: Another family, or a feature this package doesn't compute.
    """
    if values.get("model_type") not in ("llama", "llm_oxide"):
        raise CheckpointError(
            f"model_type must be one of llama, llm_oxide, got {values.get('model_type')!r} in config.json"
        )
    for key, allowed in _FIXED_KEYS.items():
        if values.get(key) not in allowed:
            raise CheckpointError(f"`{key}` must be {allowed[0]!r} in config.json, got {values[key]!r}")
    keys = _SHARED_KEYS if values["model_type"] == "llama" else _SHARED_KEYS + _COMPONENT_KEYS
    chosen = {key: values[key] for key in keys if values.get(key) is not None}
    chosen["rope_theta"] = _rope_theta(values)
    chosen.setdefault("num_key_value_heads", chosen.get("num_attention_heads", 0))
    chosen.setdefault("tie_word_embeddings", False)
    try:
        return from_builtins(chosen, ModelConfig)
    except ConfigError as error:
        raise CheckpointError(f"config.json: {error}") from error


def _rope_theta(values: Mapping[str, Any]) -> Any:
    """The rotary base from where older (`rope_theta`) or newer (`rope_parameters`) configs hold it."""
    parameters = values.get("rope_parameters") or {}
    if not isinstance(parameters, Mapping):
        raise CheckpointError(f"`rope_parameters` must be an object in config.json, got {parameters!r}")
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        raise CheckpointError(f"rotary scaling must be `default` in config.json, got {kind!r}")
    return parameters.get("rope_theta") or values.get("rope_theta") or 10_000.0


def _hf_names(name: str) -> tuple[str, ...]:
    """Hugging Face's name of our parameter `name`; several where ours is a fused one."""
    module, _, leaf = name.rpartition(".")
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
    if match is None:
        return (f"{_TOP_NAMES.get(module, module)}.{leaf}",)
    layer, inner = match.groups()
    inners = _FUSED_NAMES.get(inner, (_LAYER_NAMES.get(inner, inner),))
    return tuple(f"model.layers.{layer}.{hf_inner}.{leaf}" for hf_inner in inners)


def _fused_rows(parts: int, config: ModelConfig) -> list[int]:
    """Rows of q, k and v, or of gate and up, in the fused weight."""
    if parts == 2:
        return [config.intermediate_size] * 2
    query, kv = config.num_attention_heads * config.head_width, config.num_key_value_heads * config.head_width
    return [query, kv, kv]


def _check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], config: ModelConfig) -> None:
    problems = [f"missing {name} {list(wanted.shape)}" for name, wanted in expected.items() if name not in tensors]
    for name, tensor in tensors.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name not in expected:
            problems.append(f"unexpected {name} {list(tensor.shape)}")
        elif tensor.shape != expected[name].shape:
            problems.append(f"{name} has shape {list(tensor.shape)}, config.json says {list(expected[name].shape)}")
    if problems:
        raise CheckpointError("weights and config.json disagree:\n  " + "\n  ".join(problems))
