"""Small models of the families that llama.cpp has as well: what each differs in from a Llama."""

from typing import Any

from llm.settings.model import ExpertsConfig, ModelConfig, RopeScaling

EXPERTS = ExpertsConfig(num_experts=4, moe_intermediate_size=64)
WINDOWS = {"sliding_window": 5, "num_hidden_layers": 4, "layer_types": ("sliding_attention",) * 3 + ("full_attention",)}
INSIDE = {"norm_placement": "inside", "qk_norm": True, "tie_word_embeddings": False}
GEMMA = {"norm": "offset_rms_norm", "scale_embeddings": True, "hidden_act": "gelu_pytorch_tanh"}
YARN = RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"attention_bias": True},
    "qwen3": {"qk_norm": True, "head_dim": 32},
    "mixtral": {"mlp": "moe", "experts": EXPERTS},
    "qwen3_moe": {"mlp": "moe", "experts": EXPERTS, "qk_norm": True, "head_dim": 32},
    "gemma": GEMMA,
    "gemma3_text": GEMMA
    | WINDOWS
    | {"norm_placement": "both", "qk_norm": True, "qk_norm_type": "offset", "rope_local_base_freq": 500.0},
    "phi3": {
        "partial_rotary_factor": 0.5,
        "rope_scaling": RopeScaling(
            rope_type="longrope",
            factor=8.0,
            original_max_position_embeddings=32,
            short_factor=(1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7),
            long_factor=(1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0),
        ),
    },
    "smollm3": {"num_hidden_layers": 5, "unrotated_layers": (3,)},
    "granite": {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.11,
        "logit_scale": 0.25,
    },
    "olmo2": INSIDE | {"qk_norm_type": "whole", "num_hidden_layers": 3},
    "olmo3": INSIDE | WINDOWS | {"qk_norm_type": "whole", "rope_local_base_freq": 10_000.0, "rope_scaling": YARN},
    "seed_oss": {"attention_bias": True},
    "ministral3": {
        "rope_scaling": RopeScaling(
            rope_type="yarn",
            factor=4.0,
            original_max_position_embeddings=16,
            mscale=1.0,
            mscale_all_dim=1.0,
            llama_4_scaling_beta=0.3,
        ),
    },
    "ernie4_5": {},
    "glm4": {"norm_placement": "both", "partial_rotary_factor": 0.5},
    "stablelm": {"norm": "layer_norm", "partial_rotary_factor": 0.25, "tie_word_embeddings": False},
    "cohere2": WINDOWS
    | {"norm": "layer_norm_no_bias", "parallel_block": True, "unrotated_layers": (3,), "logit_scale": 0.3},
    "exaone4": INSIDE,
}


def small(name: str) -> ModelConfig:
    """A config that the family holds, with matrices of whole groups of 32 columns."""
    sizes = {"vocab_size": 384, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}
    return ModelConfig(initializer_range=0.2, **{**sizes, "family": name, **FAMILIES[name]})
