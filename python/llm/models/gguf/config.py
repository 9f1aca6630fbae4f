"""Converts hyper-parameters of GGUF files to values of Hugging Face's `config.json` and back.

Source: ggml-org/llama.cpp `gguf-py/gguf/constants.py` for keys, `src/llama-model.cpp` and `src/models/` for
llama.cpp's defaults and for behaviour that no key changes.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from llm.models.gguf.names import ARCHITECTURES

_REQUIRED = object()


class Key(NamedTuple):
    """Describes a hyper-parameter under both names.

    Attributes:
        hugging_face: Key in `config.json`.
        gguf: Key in the file, after the architecture and a dot.
        kind: Type of the value: int, at least 1, or float, above 0.
        default: Value that llama.cpp uses if the file has none; None omits the key from `config.json`.
    """

    hugging_face: str
    gguf: str
    kind: type
    default: Any = _REQUIRED

    @property
    def is_required(self) -> bool:
        """Whether llama.cpp has no default for the key."""
        return self.default is _REQUIRED

    @property
    def is_optional(self) -> bool:
        """Whether both the file and `config.json` may lack the key."""
        return self.default is None


_SIZES = (
    Key("hidden_size", "embedding_length", int),
    Key("num_hidden_layers", "block_count", int),
    Key("num_attention_heads", "attention.head_count", int),
    Key("max_position_embeddings", "context_length", int),
    Key("intermediate_size", "feed_forward_length", int),
)
_ROTARY = (
    *_SIZES,
    Key("num_key_value_heads", "attention.head_count_kv", int, None),
    Key("head_dim", "attention.key_length", int, None),
    Key("rms_norm_eps", "attention.layer_norm_rms_epsilon", float),
    Key("rope_theta", "rope.freq_base", float, 10_000.0),
)
_QWEN_EXPERTS = (
    Key("num_experts", "expert_count", int),
    Key("num_experts_per_tok", "expert_used_count", int),
    Key("moe_intermediate_size", "expert_feed_forward_length", int, None),
)
_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
}
KEYS: Mapping[str, tuple[Key, ...]] = {
    "llama": _ROTARY,
    "mistral": (*_ROTARY, Key("sliding_window", "attention.sliding_window", int, None)),
    "mixtral": (
        *_ROTARY,
        Key("num_local_experts", "expert_count", int),
        Key("num_experts_per_tok", "expert_used_count", int),
    ),
    "qwen2": _ROTARY,
    "qwen2_moe": (
        *_ROTARY,
        *_QWEN_EXPERTS,
        Key("shared_expert_intermediate_size", "expert_shared_feed_forward_length", int, None),
    ),
    "qwen3": _ROTARY,
    "qwen3_moe": (*_ROTARY, *_QWEN_EXPERTS),
    "gemma2": (
        *_ROTARY,
        Key("attn_logit_softcapping", "attn_logit_softcapping", float, 50.0),
        Key("final_logit_softcapping", "final_logit_softcapping", float, 30.0),
        Key("sliding_window", "attention.sliding_window", int, 4096),
    ),
    "gpt2": (
        *(key._replace(hugging_face=_GPT2_NAMES[key.hugging_face]) for key in _SIZES),
        Key("layer_norm_epsilon", "attention.layer_norm_epsilon", float),
    ),
}
# Values that llama.cpp assumes for a family and no key changes. The first one is the default of `config.json`.
FIXED: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "llama": {"hidden_act": ("silu",)},
    "mistral": {"hidden_act": ("silu",)},
    "mixtral": {"hidden_act": ("silu",), "sliding_window": (None,)},
    "qwen2": {"hidden_act": ("silu",), "use_sliding_window": (False,)},
    "qwen2_moe": {
        "hidden_act": ("silu",),
        "use_sliding_window": (False,),
        "norm_topk_prob": (False,),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([],),
    },
    "qwen3": {"hidden_act": ("silu",), "use_sliding_window": (False,)},
    "qwen3_moe": {
        "hidden_act": ("silu",),
        "use_sliding_window": (False,),
        "norm_topk_prob": (True,),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([],),
    },
    "gemma2": {"hidden_activation": ("gelu_pytorch_tanh",)},
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
    },
}
CLASSES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
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
    "embedding_scale": (0.0, 1.0),
    "expert_weights_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
}
# llama.cpp recognises the largest Gemma 2, which scales queries differently, by its number of layers.
_GEMMA2_LARGEST_LAYERS = 46


class HyperParameters:
    """Reads values of the file by key and collects the errors in `problems`."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.problems: list[str] = []
        self.architecture = metadata.get("general.architecture")
        if self.architecture not in ARCHITECTURES:
            self.problems.append(
                f"`general.architecture` must be one of {', '.join(ARCHITECTURES)}, got {self.architecture!r}"
            )
        parts = metadata.get("split.count", 1)
        if parts not in (0, 1):
            self.problems.append(
                f"it is one of {parts} parts\nhint: join them with `llama-gguf-split --merge FIRST_PART OUT`"
            )

    def number(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        """Returns the value of `key`, which must be the same for all layers and above 0; `default` if it is missing."""
        name = f"{self.architecture}.{key}"
        value = self.metadata.get(name)
        if isinstance(value, list) and value and value == value[:1] * len(value):
            value = value[0]
        if value is None and default is not _REQUIRED:
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

    def model_type(self) -> str:
        """Returns Hugging Face's name of the family."""
        if self.architecture == "llama" and self.is_present("expert_count"):
            return "mixtral"
        if self.architecture == "llama" and self.is_present("attention.sliding_window"):
            return "mistral"
        return {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}.get(str(self.architecture), str(self.architecture))

    def check_neutral(self) -> None:
        """Adds keys to `problems` that change the computation in a way that no family supports."""
        for key, neutral in _NEUTRAL.items():
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
        return {key: value for key, value in scaling.items() if value is not None}


def values_of(hyper: HyperParameters) -> dict[str, Any]:
    """Returns the values of `config.json` that the metadata give; errors are collected in `hyper`."""
    hyper.check_neutral()
    model_type = hyper.model_type()
    values = {"model_type": model_type, "architectures": [CLASSES[model_type]]}
    found = {key.hugging_face: hyper.number(key.gguf, key.kind, key.default) for key in KEYS[model_type]}
    values |= {key: value for key, value in found.items() if value is not None}
    values |= {key: allowed[0] for key, allowed in FIXED[model_type].items() if allowed[0] is not None}
    if model_type != "gpt2" and not hyper.problems:
        values |= _rotary_values(hyper, values)
    return values | hyper.token_ids()


def _rotary_values(hyper: HyperParameters, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values that depend on other values: key-value heads, their width, scaling."""
    heads, hidden_size = values["num_attention_heads"], values["hidden_size"]
    head_dim = values.get("head_dim", hidden_size // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        width = hyper.number(key, int, head_dim)
        if width != head_dim:
            hyper.problems.append(f"`{hyper.architecture}.{key}` must be the width of a head, {head_dim}, got {width}")
    found = {"num_key_value_heads": values.get("num_key_value_heads", heads), "head_dim": head_dim}
    scaling = hyper.rope_scaling()
    if scaling is not None:
        found["rope_scaling"] = scaling
    if values["model_type"] == "gemma2":
        found["query_pre_attn_scalar"] = query_scalar({**values, "head_dim": head_dim})
    return found


def num_experts(config: Mapping[str, Any]) -> int:
    """Returns the number of experts of a layer in `config.json`; 0 without experts."""
    return int(config.get("num_local_experts") or config.get("num_experts") or 0)


def query_scalar(values: Mapping[str, Any]) -> int:
    """Returns the number by whose square root llama.cpp divides Gemma 2's queries."""
    if values["num_hidden_layers"] == _GEMMA2_LARGEST_LAYERS:
        return int(values["hidden_size"] // values["num_attention_heads"])
    return int(values["head_dim"])


def _shortest(value: float) -> float:
    """Returns the shortest decimal that gives the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
