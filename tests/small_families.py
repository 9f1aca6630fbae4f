"""Small models of the families that llama.cpp has as well: what each differs in from a Llama."""

from typing import Any

import msgspec

from llm.settings.model import ExpertsConfig, LatentConfig, ModelConfig, RopeScaling

EXPERTS = ExpertsConfig(num_experts=4, moe_intermediate_size=64)
WINDOWS = {"sliding_window": 5, "num_hidden_layers": 4, "layer_types": ("sliding_attention",) * 3 + ("full_attention",)}
INSIDE = {"norm_placement": "inside", "qk_norm": True, "tie_word_embeddings": False}
GEMMA = {"norm": "offset_rms_norm", "scale_embeddings": True, "hidden_act": "gelu_pytorch_tanh"}
LATENT = LatentConfig(kv_lora_rank=64, q_lora_rank=96, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32)
DEEPSEEK = {"attention": "mla", "num_key_value_heads": 4, "num_hidden_layers": 3, "mlp": "moe", "rms_norm_eps": 1e-6}
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
    "gpt_oss": {
        "head_dim": 32,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "attention_output_bias": True,
        "attention_sinks": True,
        "sliding_window": 5,
        "layer_types": ("sliding_attention", "full_attention"),
        "mlp": "moe",
        "experts": ExpertsConfig(
            num_experts=4, moe_intermediate_size=64, softmax_first=False, bias=True, swiglu_limit=7.0
        ),
        # The ramp ends at channel 4, so that llama.cpp's rounding of its ends changes nothing.
        "rope_theta": 10_765.0,
        "rope_scaling": RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, truncate=False),
    },
    "deepseek_v2": DEEPSEEK
    | {
        "latent": msgspec.structs.replace(LATENT, q_lora_rank=None),
        "experts": ExpertsConfig(
            num_experts=4,
            moe_intermediate_size=64,
            shared_expert_intermediate_size=128,
            norm_topk_prob=False,
            routed_scaling_factor=2.0,
            dense_layers=(0,),
        ),
        "rope_scaling": RopeScaling(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=0.7
        ),
    },
    "deepseek_v3": DEEPSEEK
    | {
        "latent": LATENT,
        "tie_word_embeddings": False,
        "experts": ExpertsConfig(
            num_experts=8,
            moe_intermediate_size=64,
            shared_expert_intermediate_size=64,
            sigmoid_scores=True,
            score_correction=True,
            routed_scaling_factor=2.5,
            n_group=4,
            topk_group=2,
            dense_layers=(0,),
        ),
        "rope_scaling": RopeScaling(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0
        ),
    },
}


def small(name: str) -> ModelConfig:
    """A config that the family holds, with matrices of whole groups of 32 columns."""
    sizes = {"vocab_size": 384, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}
    return ModelConfig(initializer_range=0.2, **{**sizes, "family": name, **FAMILIES[name]})
