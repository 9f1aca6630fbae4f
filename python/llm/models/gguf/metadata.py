"""Converts Hugging Face's `config.json` to the hyper-parameters of a GGUF file."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llm.errors import CheckpointError
from llm.models.families import FAMILIES
from llm.models.gguf.config import LOG_MULTIPLIER, YARN_KEYS, query_scalar
from llm.models.gguf.keys import (
    EXAONE4_LAYERS_WITH_WINDOW,
    FIXED,
    KEYS,
    LATENT,
    PARTLY_ROTATED,
    PATTERNS,
    SIGMOID_SCORES,
    SMOLLM3_PATTERN,
    SOFTMAX_SCORES,
    UNCOMPRESSED_LAYERS,
    UNCOMPRESSED_LAYERS_AND_TOKENS,
    Key,
)
from llm.models.gguf.names import ROPE_FREQS, ROPE_LONG, ROPE_SHORT, family_of
from llm.models.gguf.rope import llama3_factors, longrope_factor

# Defaults of Hugging Face's classes that differ from llama.cpp's.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "gemma2": {"head_dim": 256},
    "mistral": {"sliding_window": 4096},
    "mixtral": {"rope_theta": 1e6},
    "qwen3": {"head_dim": 128},
    "qwen3_moe": {"norm_topk_prob": False},
}
_SCALINGS = ("default", "linear", "llama3", "yarn")
# llama.cpp reads no divisors of frequencies in these families, and takes any factor of latent attention for YaRN's.
_OWN_SCALINGS: Mapping[str, tuple[str, ...]] = {
    "gpt_oss": ("default", "linear", "yarn"),
    **dict.fromkeys(LATENT, ("default", "yarn")),
}
# Families whose own reader completes the config.
_COMPLETED = (
    *PATTERNS,
    *PARTLY_ROTATED,
    *LATENT,
    *("gemma", "smollm3", "granite", "olmo2", "seed_oss", "ernie4_5", "ministral3"),
)
# Values of a scaling that only these families have in a GGUF file.
_OWN_KEYS: Mapping[str, tuple[str, ...]] = {
    "ministral3": ("mscale", "mscale_all_dim", "llama_4_scaling_beta", "original_max_position_embeddings"),
    "gpt_oss": ("truncate",),
    **dict.fromkeys(LATENT, ("mscale", "mscale_all_dim")),
}
# What llama.cpp takes for the ends of YaRN's ramp, in turns.
_YARN_TURNS = {"beta_fast": 32.0, "beta_slow": 1.0}
_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_MAX_UINT32 = 2**32 - 1


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `config` with derived values, and with the rotary scaling under one key.

    Returns:
        `rope_parameters` holds `rope_type` and its values; `rope_theta`, `head_dim` and `num_key_value_heads` are
        there where the family has them.

    Raises:
        CheckpointError: The scaling is not an object.
    """
    model_type = config["model_type"]
    values = {**_DEFAULTS.get(model_type, {}), **config}
    if model_type in _COMPLETED:
        family = FAMILIES[model_type]
        values |= family.config_to(family.config_from(config))
    if model_type == "gpt2":
        if values.get("n_inner") is None and isinstance(values.get("n_embd"), int):
            values["n_inner"] = 4 * values["n_embd"]
        return values
    # transformers writes one name for both Qwen families; older files have another.
    if values.get("num_experts") is None and model_type != "mixtral":
        values["num_experts"] = values.get("num_local_experts")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise CheckpointError(f"`rope_parameters` must be an object in config.json, got {rope!r}")
    rope = dict(rope.get("full_attention", rope))
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type") or "default"
    values["rope_theta"] = rope.pop("rope_theta", None) or values.get("rope_theta") or 10_000.0
    values["rope_parameters"] = rope
    heads, hidden_size = values.get("num_attention_heads"), values.get("hidden_size")
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = heads
    if values.get("head_dim") is None and isinstance(heads, int) and isinstance(hidden_size, int) and heads > 0:
        values["head_dim"] = hidden_size // heads
    return values


def hyper_parameters(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Returns the metadata that tell llama.cpp what to compute.

    Args:
        config: Config from `complete`.
        problems: List that receives values that are missing, wrong or not supported by llama.cpp.
    """
    model_type, architecture = config["model_type"], family_of(config).architecture
    found = {key.gguf: _value(key, config, problems) for key in KEYS[model_type]}
    for name, allowed in FIXED[model_type].items():
        value = config.get(name, allowed[0])
        if value not in allowed:
            problems.append(f"`{name}` must be {' or '.join(map(repr, allowed))}, got {value!r}")
    if model_type != "gpt2" and not problems:
        found |= (_latent if model_type in LATENT else _rotary)(config, problems)
    found["vocab_size"] = _value(Key("vocab_size", "vocab_size", int), config, problems)
    return {f"{architecture}.{key}": value for key, value in found.items() if value is not None}


def _value(key: Key, config: Mapping[str, Any], problems: list[str]) -> Any:
    value = config.get(key.hugging_face, None if key.is_required else key.default)
    if value is None and key.is_optional:
        return None
    is_number = isinstance(value, (int, float) if key.kind is float else int) and not isinstance(value, bool)
    if not is_number or not 0 < value < (math.inf if key.kind is float else _MAX_UINT32):
        problems.append(f"`{key.hugging_face}` must be a positive {key.kind.__name__} in a GGUF file, got {value!r}")
        return None
    return key.kind(value)


def _rotary(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    head_dim = config["head_dim"]
    partial = config["rope_parameters"].get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1
    if partial != 1 and config["model_type"] not in PARTLY_ROTATED:
        problems.append(f"`partial_rotary_factor` must be 1 in a GGUF file, got {partial!r}")
    _check_windows(config, problems)
    _check_positions(config, problems)
    return {
        "attention.value_length": head_dim,
        "rope.dimension_count": int(head_dim * partial),
        **_pattern(config, problems),
        **_scaling(config, problems),
    }


def _latent(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Returns the metadata of latent attention, in the form that expands no keys, and of the choice of experts."""
    rank, rotated, value = config["kv_lora_rank"], config["qk_rope_head_dim"], config["v_head_dim"]
    layers, compressed = config["num_hidden_layers"], config.get("q_lora_rank")
    if compressed and (
        layers in UNCOMPRESSED_LAYERS or (layers, config["vocab_size"]) == UNCOMPRESSED_LAYERS_AND_TOKENS
    ):
        problems.append(
            f"`q_lora_rank` must be null in a GGUF file of {layers} layers, got {compressed}: llama.cpp takes queries "
            "of so many layers for uncompressed"
        )
    is_sigmoid = config["model_type"] == "deepseek_v3"
    return {
        "attention.head_count_kv": 1,
        "attention.key_length": rank + rotated,
        "attention.value_length": rank,
        "attention.key_length_mla": config["qk_nope_head_dim"] + rotated,
        "attention.value_length_mla": value,
        "attention.q_lora_rank": compressed or 0,
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_weights_norm": bool(config["norm_topk_prob"]),
        "expert_gating_func": SIGMOID_SCORES if is_sigmoid else SOFTMAX_SCORES,
        **_groups(config, problems),
        **_scaling(config, problems),
    }


def _groups(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Returns the groups of experts, unless a token may choose from all of them."""
    groups, used = config["n_group"], config["topk_group"]
    if groups == used:
        return {}
    if config["model_type"] == "deepseek_v2":
        problems.append(
            f"`n_group` must be 1 in a GGUF file of deepseek_v2, got {groups}: llama.cpp compares groups by the sum of "
            "their two best experts, DeepSeek-V2 by the best one"
        )
    if groups >= config["n_routed_experts"]:
        problems.append(f"`n_group` must be below `n_routed_experts` in a GGUF file, got {groups}")
    return {"expert_group_count": groups, "expert_group_used_count": used}


def _pattern(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Returns which layers have a window, as a list of 1 and 0."""
    if config["model_type"] not in PATTERNS or config.get("sliding_window") is None:
        return {}
    if config["model_type"] == "exaone4" and config["num_hidden_layers"] != EXAONE4_LAYERS_WITH_WINDOW:
        problems.append(
            f"`sliding_window` must be null in a GGUF file of {config['num_hidden_layers']} layers, "
            f"got {config['sliding_window']}: llama.cpp attends to all tokens"
        )
    return {"attention.sliding_window_pattern": [int(kind == "sliding_attention") for kind in config["layer_types"]]}


def _check_positions(config: Mapping[str, Any], problems: list[str]) -> None:
    """Checks which layers have positions, and the base of those with a window."""
    model_type = config["model_type"]
    if model_type == "smollm3":
        wanted = [int((layer + 1) % SMOLLM3_PATTERN != 0) for layer in range(config["num_hidden_layers"])]
        if config["no_rope_layers"] != wanted:
            problems.append(f"`no_rope_layers` must be {wanted} in a GGUF file, got {config['no_rope_layers']}")
    if model_type == "olmo3" and config["rope_local_base_freq"] != config["rope_theta"]:
        problems.append(
            f"the rotary base of layers with a window must be that of the others, {config['rope_theta']}, in a GGUF "
            f"file, got {config['rope_local_base_freq']}"
        )
    if model_type == "gemma3_text" and config["rope_parameters"]["rope_type"] not in ("default", "linear"):
        problems.append(f"`rope_type` must be linear in a GGUF file, got {config['rope_parameters']['rope_type']!r}")


def _check_windows(config: Mapping[str, Any], problems: list[str]) -> None:
    """Checks windows: llama.cpp attends to all tokens, except in Gemma 2, which has fixed rules."""
    window = config.get("sliding_window")
    if (
        config["model_type"] in ("mistral", "phi3", "ministral3")
        and window is not None
        and window < config["max_position_embeddings"]
    ):
        problems.append(
            f"`sliding_window` must be null or at least `max_position_embeddings`, got {window}: llama.cpp attends to "
            f"all tokens\nhint: set `max_position_embeddings` to {window}"
        )
    if config["model_type"] not in ("gemma2", "gemma3_text"):
        return
    scalar = config.get("query_pre_attn_scalar", 256)
    if scalar != query_scalar(config):
        problems.append(f"`query_pre_attn_scalar` must be {query_scalar(config)} in a GGUF file, got {scalar}")
    if config["model_type"] != "gemma2":
        return
    wanted = [("full_attention" if layer % 2 else "sliding_attention") for layer in range(config["num_hidden_layers"])]
    if config.get("layer_types") not in (None, wanted):
        problems.append(f"`layer_types` must be sliding and full in turn in a GGUF file, got {config['layer_types']}")


def _scaling(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Returns the metadata of a scaling; Llama 3's is a tensor, see `rope_factors`."""
    rope = config["rope_parameters"]
    if rope["rope_type"] == "longrope" and config["model_type"] == "phi3":
        original = rope["original_max_position_embeddings"]
        factor = longrope_factor(rope, config["max_position_embeddings"])
        return {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": factor}
    kind, own = rope["rope_type"], _OWN_KEYS.get(config["model_type"], ())
    names = {
        "linear": ("factor",),
        "yarn": ("factor", "original_max_position_embeddings", *YARN_KEYS),
        "llama3": _LLAMA3_KEYS,
    }.get(kind, ())
    kinds = _OWN_SCALINGS.get(config["model_type"], _SCALINGS)
    if kind not in kinds:
        problems.append(f"`rope_type` must be one of {', '.join(kinds)} in a GGUF file, got {kind!r}")
        return {}
    other = {key for key, value in rope.items() if value is not None} - {
        *names,
        *own,
        "rope_type",
        "partial_rotary_factor",
    }
    if other:
        problems.append(f"values of a {kind} scaling must be among {', '.join(names)}, got {', '.join(sorted(other))}")
    values = {name: _value(Key(name, name, float, None), rope, problems) for name in names}
    _check_scaling(config["model_type"], kind, values, problems)
    if kind not in ("linear", "yarn"):
        return {}
    original = values.get("original_max_position_embeddings")
    return {
        "rope.scaling.type": kind,
        "rope.scaling.factor": values["factor"],
        "rope.scaling.original_context_length": None if original is None else int(original),
        **{f"rope.scaling.{key}": values.get(name) for name, key in YARN_KEYS.items()},
        **(_own_scaling(config["model_type"], rope, problems) if own and kind == "yarn" else {}),
    }


def _check_scaling(model_type: str, kind: str, values: Mapping[str, Any], problems: list[str]) -> None:
    needed = list(values)[: None if kind == "llama3" else 1]
    problems += [f"`{name}` of a {kind} scaling is missing" for name in needed if values[name] is None]
    if kind == "llama3" and not problems and values["low_freq_factor"] >= values["high_freq_factor"]:
        problems.append(f"`low_freq_factor` must be below `high_freq_factor`, got {values['low_freq_factor']}")
    if model_type != "ministral3":
        problems += [
            f"`{name}` must be {usual} in a GGUF file, got {values[name]}: llama.cpp doesn't read it in this family"
            for name, usual in _YARN_TURNS.items()
            if values.get(name) not in (None, usual)
        ]


def _own_scaling(model_type: str, rope: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Returns the metadata of a scaling by YaRN that only one family has."""
    if model_type == "ministral3":
        return _ministral3(rope, problems)
    if model_type == "gpt_oss":
        if rope.get("truncate", True):
            problems.append("`truncate` of a yarn scaling must be False in a GGUF file of gpt_oss, got True")
        return {}
    scale = rope.get("mscale_all_dim")
    if not scale or rope.get("mscale") != scale:
        problems.append(
            "`mscale` and `mscale_all_dim` must be one number above 0 in a GGUF file: llama.cpp has one for both, "
            f"got {rope.get('mscale')!r} and {scale!r}"
        )
        return {}
    return {"rope.scaling.yarn_log_multiplier": LOG_MULTIPLIER * scale}


def _ministral3(rope: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Returns the growth of queries and the factor of the whole head; llama.cpp takes the other factor for 1."""
    of_all = rope.get("mscale_all_dim")
    if of_all and rope.get("mscale") != 1:
        problems.append(f"`mscale` must be 1 in a GGUF file, got {rope.get('mscale')!r}")
    growth = {
        "attention.temperature_scale": rope.get("llama_4_scaling_beta"),
        "rope.scaling.yarn_log_multiplier": of_all,
    }
    return {key: float(value) for key, value in growth.items() if value}


def rope_tensors(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the frequency divisors of a scaling by their names in the file, shape (D / 2,) each, float32."""
    rope = config.get("rope_parameters", {})
    if rope.get("rope_type") == "llama3":
        factors = llama3_factors(rope, config["rope_theta"], config["head_dim"])
        return {ROPE_FREQS: factors.to(torch.float32)}
    if rope.get("rope_type") == "longrope":
        return {ROPE_LONG: torch.tensor(rope["long_factor"]), ROPE_SHORT: torch.tensor(rope["short_factor"])}
    return {}
