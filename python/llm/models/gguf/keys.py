"""Lists the hyper-parameters of each family in GGUF files and in `config.json`.

Source: ggml-org/llama.cpp `gguf-py/gguf/constants.py` for keys, `src/llama-model.cpp` and `src/models/` for
llama.cpp's defaults and for behaviour that no key changes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

REQUIRED = object()


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
    default: Any = REQUIRED

    @property
    def is_required(self) -> bool:
        """Whether llama.cpp has no default for the key."""
        return self.default is REQUIRED

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
_LAYER_NORMS = (
    *(key for key in _ROTARY if key.hugging_face != "rms_norm_eps"),
    Key("layer_norm_eps", "attention.layer_norm_epsilon", float),
)
_WINDOW = Key("sliding_window", "attention.sliding_window", int, None)
_QWEN_EXPERTS = (
    Key("num_experts", "expert_count", int),
    Key("num_experts_per_tok", "expert_used_count", int),
    Key("moe_intermediate_size", "expert_feed_forward_length", int, None),
)
_LATENT = (
    *_SIZES,
    *(key for key in _ROTARY if key.hugging_face in ("rms_norm_eps", "rope_theta")),
    Key("kv_lora_rank", "attention.kv_lora_rank", int),
    Key("qk_rope_head_dim", "rope.dimension_count", int),
    Key("n_routed_experts", "expert_count", int),
    Key("num_experts_per_tok", "expert_used_count", int),
    Key("moe_intermediate_size", "expert_feed_forward_length", int),
    Key("n_shared_experts", "expert_shared_count", int),
    Key("routed_scaling_factor", "expert_weights_scale", float, 1.0),
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
    "mistral": (*_ROTARY, _WINDOW),
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
    "gemma": _ROTARY,
    "gemma3_text": (
        *_ROTARY,
        _WINDOW,
        Key("rope_local_base_freq", "rope.freq_base_swa", float, 10_000.0),
        Key("final_logit_softcapping", "final_logit_softcapping", float, None),
    ),
    "phi3": _ROTARY,
    "smollm3": _ROTARY,
    "granite": (
        *_ROTARY,
        Key("embedding_multiplier", "embedding_scale", float, None),
        Key("residual_multiplier", "residual_scale", float, None),
        Key("attention_multiplier", "attention.scale", float, None),
        Key("logits_scaling", "logit_scale", float),
    ),
    "olmo2": _ROTARY,
    "olmo3": (*_ROTARY, _WINDOW),
    "seed_oss": _ROTARY,
    "ernie4_5": _ROTARY,
    "glm4": _ROTARY,
    "stablelm": _LAYER_NORMS,
    "cohere2": (
        *_LAYER_NORMS,
        _WINDOW._replace(default=REQUIRED),
        Key("logit_scale", "logit_scale", float),
    ),
    "exaone4": (*_ROTARY, _WINDOW),
    "ministral3": _ROTARY,
    "gpt_oss": (
        *_ROTARY,
        Key("num_local_experts", "expert_count", int),
        Key("num_experts_per_tok", "expert_used_count", int),
        Key("intermediate_size", "expert_feed_forward_length", int),
        _WINDOW._replace(default=REQUIRED),
    ),
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "gpt2": (
        *(key._replace(hugging_face=_GPT2_NAMES[key.hugging_face]) for key in _SIZES),
        Key("layer_norm_epsilon", "attention.layer_norm_epsilon", float),
    ),
}
_SILU: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)}
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
    "gemma": {"hidden_activation": ("gelu_pytorch_tanh",), "attention_bias": (False,), "tie_word_embeddings": (True,)},
    "gemma3_text": {
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": (False,),
        "attn_logit_softcapping": (None,),
    },
    "phi3": {"hidden_act": ("silu",)},
    "smollm3": _SILU | {"use_sliding_window": (False,)},
    "granite": {"hidden_act": ("silu",)},
    "olmo2": _SILU | {"tie_word_embeddings": (False,)},
    "olmo3": _SILU | {"tie_word_embeddings": (False,)},
    "seed_oss": {"hidden_act": ("silu",), "attention_out_bias": (False,), "mlp_bias": (False,)},
    "ernie4_5": {"hidden_act": ("silu",), "use_bias": (False,)},
    "glm4": {"hidden_act": ("silu",)},
    "stablelm": {"hidden_act": ("silu",), "qk_layernorm": (False,), "tie_word_embeddings": (False,)},
    "cohere2": _SILU | {"tie_word_embeddings": (True,)},
    "exaone4": {"hidden_act": ("silu",)},
    "ministral3": {"hidden_act": ("silu",)},
    # The biases of attention are a part of every file, and so is the bound of the experts.
    "gpt_oss": {
        "hidden_act": ("silu",),
        "attention_bias": (True,),
        "swiglu_limit": (7.0,),
        "tie_word_embeddings": (False,),
    },
    "deepseek_v2": _SILU,
    "deepseek_v3": _SILU | {"rope_interleave": (True,)},
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
    "gemma": "GemmaForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
# Families whose windows follow a pattern: one layer in so many sees all tokens.
PATTERNS: Mapping[str, int] = {"gemma3_text": 6, "olmo3": 4, "cohere2": 4, "exaone4": 4, "gpt_oss": 2}
# Families with latent attention.
LATENT = ("deepseek_v2", "deepseek_v3")
# Numbers of layers, and of layers with a vocabulary, with which llama.cpp takes latent queries for uncompressed.
UNCOMPRESSED_LAYERS, UNCOMPRESSED_LAYERS_AND_TOKENS = (26, 27), (48, 128_256)
# Numbers by which files name the scores of experts.
SOFTMAX_SCORES, SIGMOID_SCORES = 1, 2
# The only number of layers with which EXAONE 4.0 has windows in llama.cpp.
EXAONE4_LAYERS_WITH_WINDOW = 64
# Families that may rotate a part of each head.
PARTLY_ROTATED = ("phi3", "glm4", "stablelm")
# One layer in so many has no positions.
SMOLLM3_PATTERN = 4
