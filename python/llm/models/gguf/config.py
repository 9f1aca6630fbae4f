"""Converts hyper-parameters of GGUF files to values of Hugging Face's `config.json` and back.

Source: ggml-org/llama.cpp, as for `keys`.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llm.models.families.checks import MOST_LAYERS
from llm.models.gguf.keys import (
    CLASSES,
    EXAONE4_LAYERS_WITH_WINDOW,
    FIXED,
    KEYS,
    LATENT,
    PARTLY_ROTATED,
    PATTERNS,
    REQUIRED,
    SIGMOID_SCORES,
    SMOLLM3_PATTERN,
    SOFTMAX_SCORES,
)
from llm.models.gguf.names import ARCHITECTURES

_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
YARN_KEYS = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
# Values with which llama.cpp ignores these keys.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.scale": (0.0,),
    "attention.temperature_scale": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_weights_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "nextn_predict_layers": (0,),
    "residual_scale": (0.0, 1.0),
}
# Keys of the list above that some families use.
_ALSO_USED: Mapping[str, set[str]] = {
    "phi3": {"rope.scaling.attn_factor"},
    "ministral3": {"rope.scaling.yarn_log_multiplier", "attention.temperature_scale"},
    **{name: {"rope.scaling.yarn_log_multiplier"} for name in LATENT},
}
# llama.cpp recognises the largest Gemma 2 and 3, which scale queries differently, by their number of layers.
_LARGEST_LAYERS = {"gemma2": 46, "gemma3_text": 62}
_HUGGING_FACE = {
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "gemma3": "gemma3_text",
    "mistral3": "ministral3",
    "gpt-oss": "gpt_oss",
}
# Files of DeepSeek's models have `mscale_all_dim` times this.
LOG_MULTIPLIER = 0.1


class HyperParameters:
    """Reads values of the file by key and collects the errors in `problems`."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.problems: list[str] = []
        self.architecture = metadata.get("general.architecture")
        if self.architecture not in ARCHITECTURES:
            self.problems.append(
                f"`general.architecture` must be one of {', '.join(ARCHITECTURES)}, got {repr(self.architecture)[:60]}"
            )
        parts = metadata.get("split.count", 1)
        if parts not in (0, 1):
            self.problems.append(
                f"it is one of {str(parts)[:60]} parts\nhint: join them with `llama-gguf-split --merge FIRST_PART OUT`"
            )

    def number(self, key: str, kind: type, default: Any = REQUIRED) -> Any:
        """Returns the value of `key`, which must be the same for all layers and above 0; `default` if it is missing."""
        name = f"{self.architecture}.{key}"
        value = self.metadata.get(name)
        if isinstance(value, list) and value and value == value[:1] * len(value):
            value = value[0]
        if value is None and default is not REQUIRED:
            return default
        if value is None:
            self.problems.append(f"`{name}` is missing")
        elif isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
            self.problems.append(f"`{name}` must be one {kind.__name__} for all layers, got {str(value)[:60]!r}")
        elif not (0 < value < math.inf):
            self.problems.append(f"`{name}` must be above 0 and finite, got {value!r}")
        else:
            return _shortest(value) if kind is float else value
        return None

    def is_present(self, key: str) -> bool:
        """Whether `key` has a value other than zero."""
        return bool(self.metadata.get(f"{self.architecture}.{key}"))

    def count(self, key: str, default: int | None) -> Any:
        """Returns the whole number under `key`; `default` if it is missing or 0."""
        return self.number(key, int) if self.is_present(key) else default

    def model_type(self) -> str:
        """Returns Hugging Face's name of the family."""
        if self.architecture == "llama" and self.is_present("expert_count"):
            return "mixtral"
        if self.architecture == "llama" and self.is_present("attention.sliding_window"):
            return "mistral"
        if self.architecture == "olmo2" and self.is_present("attention.sliding_window"):
            return "olmo3"
        if self.architecture == "deepseek2":
            scores = self.metadata.get("deepseek2.expert_gating_func")
            return "deepseek_v3" if scores == SIGMOID_SCORES else "deepseek_v2"
        return _HUGGING_FACE.get(str(self.architecture), str(self.architecture))

    def check_neutral(self) -> None:
        """Adds keys to `problems` that change the computation in a way that no family supports."""
        used = {key.gguf for key in KEYS[self.model_type()]} | _ALSO_USED.get(self.model_type(), set())
        for key, neutral in _NEUTRAL.items():
            if key in used:
                continue
            value = self.metadata.get(f"{self.architecture}.{key}", neutral[0])
            if value not in neutral:
                self.problems.append(f"`{self.architecture}.{key}` must be {neutral[0]}, got {str(value)[:60]}")

    def token_ids(self) -> dict[str, int]:
        """Returns the ids of special tokens under the keys of `config.json`."""
        values = {key: self.metadata.get(f"tokenizer.ggml.{role}_token_id") for key, role in _IDS.items()}
        return {key: value for key, value in values.items() if isinstance(value, int)}

    def rope_scaling(self) -> dict[str, Any] | None:
        """Returns the scaling of rotary angles, except Llama 3's; None if there is none."""
        prefix = "rope.scaling."
        # The second one is of older files.
        named = [key for key in (f"{prefix}factor", "rope.scale_linear") if self.is_present(key)]
        factor = (self.number(named[0], float) or 1.0) if named else 1.0
        kind = self.metadata.get(f"{self.architecture}.{prefix}type", "linear")
        if kind == "none" or (kind == "linear" and factor == 1.0):
            return None
        if kind == "linear":
            return {"rope_type": "linear", "factor": factor}
        if kind != "yarn":
            self.problems.append(
                f"`{self.architecture}.{prefix}type` must be one of none, linear, yarn, got {str(kind)[:60]!r}"
            )
            return None
        return self._yarn(prefix, factor)

    def _yarn(self, prefix: str, factor: float) -> dict[str, Any]:
        original = self.number(f"{prefix}original_context_length", int, None)
        betas = {name: self.number(f"{prefix}{key}", float, None) for name, key in YARN_KEYS.items()}
        scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **betas}
        if self.architecture == "mistral3":
            scaling |= self._ministral3(prefix)
        if self.architecture == "deepseek2":
            # llama.cpp takes `mscale` for the same number.
            of_all = self.number(f"{prefix}yarn_log_multiplier", float)
            scale = None if of_all is None else _shortest(of_all / LOG_MULTIPLIER)
            scaling |= {"mscale": scale, "mscale_all_dim": scale}
        if self.architecture == "gpt-oss":
            # No key tells: published models don't round the ends of the ramp, though llama.cpp does.
            scaling["truncate"] = False
        return {key: value for key, value in scaling.items() if value is not None}

    def _ministral3(self, prefix: str) -> dict[str, Any]:
        """Returns the growth of queries and the factors of a scaling, of which llama.cpp takes the first for 1."""
        of_all = self.metadata.get(f"{self.architecture}.{prefix}yarn_log_multiplier")
        scales = {"mscale": 1.0, "mscale_all_dim": float(of_all)} if isinstance(of_all, float) and of_all else {}
        growth = self.metadata.get(f"{self.architecture}.attention.temperature_scale")
        has_growth = isinstance(growth, float) and growth > 0
        return scales | ({"llama_4_scaling_beta": _shortest(growth)} if has_growth and growth is not None else {})

    def sliding_layers(self, num_layers: int, every: int) -> list[bool]:
        """Returns which layers have a window: by a list, by one layer in so many that has none, or by `every`."""
        key = f"{self.architecture}.attention.sliding_window_pattern"
        pattern = self.metadata.get(key, every)
        if isinstance(pattern, list) and len(pattern) >= num_layers:
            return [bool(sliding) for sliding in pattern[:num_layers]]
        if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern >= 0:
            return [not pattern or (layer + 1) % pattern != 0 for layer in range(num_layers)]
        self.problems.append(f"`{key}` must be a number or a list of {num_layers} layers, got {str(pattern)[:60]}")
        return [False] * num_layers


def values_of(hyper: HyperParameters) -> dict[str, Any]:
    """Returns the values of `config.json` that the metadata give; errors are collected in `hyper`."""
    hyper.check_neutral()
    model_type = hyper.model_type()
    values = {"model_type": model_type, "architectures": [CLASSES[model_type]]}
    found = {key.hugging_face: hyper.number(key.gguf, key.kind, key.default) for key in KEYS[model_type]}
    values |= {key: value for key, value in found.items() if value is not None}
    values |= {key: allowed[0] for key, allowed in FIXED[model_type].items() if allowed[0] is not None}
    layers = found.get("num_hidden_layers") or 0
    if layers > MOST_LAYERS:
        hyper.problems.append(f"`{hyper.architecture}.block_count` must be at most {MOST_LAYERS:,}, got {layers}")
    if model_type != "gpt2" and not hyper.problems:
        values |= (_latent_values if model_type in LATENT else _rotary_values)(hyper, values)
    return values | hyper.token_ids()


def _rotary_values(hyper: HyperParameters, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values that depend on other values: key-value heads, their width, scaling."""
    heads, hidden_size = values["num_attention_heads"], values["hidden_size"]
    head_dim = values.get("head_dim", hidden_size // heads)
    model_type, found = values["model_type"], {"head_dim": head_dim}
    for key in ("attention.value_length", "rope.dimension_count"):
        width = hyper.number(key, int, head_dim) or head_dim
        if model_type in PARTLY_ROTATED and key == "rope.dimension_count" and width <= head_dim:
            # The next number where the product with the width would otherwise end below a whole number.
            share = width / head_dim
            exact = int(head_dim * share) == width
            found["partial_rotary_factor"] = share if exact else math.nextafter(share, 1.0)
        elif width != head_dim:
            hyper.problems.append(f"`{hyper.architecture}.{key}` must be the width of a head, {head_dim}, got {width}")
    found["num_key_value_heads"] = values.get("num_key_value_heads", heads)
    scaling = hyper.rope_scaling()
    if scaling is not None:
        found["rope_scaling"] = scaling
    if model_type in _LARGEST_LAYERS:
        found["query_pre_attn_scalar"] = query_scalar({**values, "head_dim": head_dim})
    return found | _family_values(hyper, {**values, **found})


def _latent_values(hyper: HyperParameters, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of latent attention and of experts that depend on other values."""
    rotated = values["qk_rope_head_dim"]
    # Older files expand keys and values, and have the widths of a head under the usual keys.
    suffix = "_mla" if hyper.is_present("attention.key_length_mla") else ""
    width = hyper.number(f"attention.key_length{suffix}", int)
    if width is not None and width <= rotated:
        key = f"{hyper.architecture}.attention.key_length{suffix}"
        hyper.problems.append(f"`{key}` must be above the width that is rotated, {rotated}, got {width}")
    found = {
        "num_key_value_heads": values["num_attention_heads"],
        "head_dim": rotated,
        "qk_nope_head_dim": (width or 0) - rotated,
        "v_head_dim": hyper.number(f"attention.value_length{suffix}", int),
        "q_lora_rank": hyper.count("attention.q_lora_rank", None),
        "norm_topk_prob": hyper.is_present("expert_weights_norm"),
        "first_k_dense_replace": hyper.count("leading_dense_block_count", 0),
    }
    scaling = hyper.rope_scaling()
    return found | _choice(hyper) | ({} if scaling is None else {"rope_scaling": scaling})


def _choice(hyper: HyperParameters) -> dict[str, Any]:
    """Returns how experts are scored and chosen."""
    num_groups = hyper.count("expert_group_count", 1)
    groups = {"n_group": num_groups, "topk_group": 1 if num_groups == 1 else hyper.count("expert_group_used_count", 1)}
    if hyper.model_type() == "deepseek_v3":
        return groups | {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
    kind = hyper.metadata.get(f"{hyper.architecture}.expert_gating_func", SOFTMAX_SCORES)
    if hyper.is_present("expert_weights_norm"):
        hyper.problems.append(
            f"`{hyper.architecture}.expert_weights_norm` must be false unless experts are scored by sigmoids, got true"
        )
    if kind not in (0, SOFTMAX_SCORES):
        allowed = f"{SOFTMAX_SCORES} (softmax) or {SIGMOID_SCORES} (sigmoid)"
        hyper.problems.append(f"`{hyper.architecture}.expert_gating_func` must be {allowed}, got {str(kind)[:60]}")
    return groups | {"scoring_func": "softmax", "topk_method": "greedy" if num_groups == 1 else "group_limited_greedy"}


def _family_values(hyper: HyperParameters, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a family's config has beside the usual values: windows, layers without positions, factors."""
    model_type, layers = values["model_type"], values["num_hidden_layers"]
    if model_type == "smollm3":
        return {"no_rope_layers": [int((layer + 1) % SMOLLM3_PATTERN != 0) for layer in range(layers)]}
    if model_type == "granite":
        usual = {"attention_multiplier": values["head_dim"] ** -0.5}
        return usual | {key: values[key] for key in ("attention_multiplier",) if key in values}
    if model_type == "ministral3" and "rope_scaling" not in values:
        # Without these values transformers takes those of the published models.
        growth = {"llama_4_scaling_beta": 0.0, "original_max_position_embeddings": values["max_position_embeddings"]}
        return {"rope_parameters": {"rope_type": "default", "rope_theta": values["rope_theta"], **growth}}
    if model_type == "phi3":
        return {"sliding_window": hyper.metadata.get("phi3.attention.sliding_window") or None}
    if model_type not in PATTERNS:
        return {}
    found = _windows(hyper, values)
    if model_type == "gpt_oss" and "rope_scaling" not in values:  # without these values transformers scales
        found |= {"rope_parameters": {"rope_type": "default", "rope_theta": values["rope_theta"]}}
    return found | (_two_ropes(values, hyper) if model_type in ("gemma3_text", "olmo3") else {})


def _windows(hyper: HyperParameters, values: Mapping[str, Any]) -> dict[str, Any]:
    model_type, layers = values["model_type"], values["num_hidden_layers"]
    is_ignored = model_type == "exaone4" and layers != EXAONE4_LAYERS_WITH_WINDOW
    if is_ignored or "sliding_window" not in values:
        return {"sliding_window": None, "layer_types": ["full_attention"] * layers}
    sliding = hyper.sliding_layers(layers, PATTERNS[model_type])
    return {"layer_types": ["sliding_attention" if each else "full_attention" for each in sliding]}


def _two_ropes(values: Mapping[str, Any], hyper: HyperParameters) -> dict[str, Any]:
    """Returns the rotary settings of layers without a window, which alone are scaled, and with one."""
    scaling = values.get("rope_scaling", {"rope_type": "default"})
    if values["model_type"] == "gemma3_text" and scaling["rope_type"] not in ("default", "linear"):
        hyper.problems.append(f"`{hyper.architecture}.rope.scaling.type` must be linear, got {scaling['rope_type']}")
    local = values.get("rope_local_base_freq", values["rope_theta"])
    full = {"rope_theta": values["rope_theta"], **scaling}
    sliding = {"rope_type": "default", "rope_theta": local}
    return {"rope_scaling": None, "rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


def num_experts(config: Mapping[str, Any]) -> int:
    """Returns the number of experts of a layer in `config.json`; 0 without experts."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return int(next((config[name] for name in names if config.get(name)), 0))


def query_scalar(values: Mapping[str, Any]) -> int:
    """Returns the number by whose square root llama.cpp divides the queries of Gemma 2 and 3."""
    if values["num_hidden_layers"] == _LARGEST_LAYERS[values["model_type"]]:
        return int(values["hidden_size"] // values["num_attention_heads"])
    return int(values["head_dim"])


def _shortest(value: float) -> float:
    """Returns the shortest decimal that gives the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
