"""Small models of every mix of components, shared by the tests that must hold for all of them."""

import itertools
from typing import Any

import msgspec
import torch

from llm.models import DecoderModel
from llm.settings.model import ExpertsConfig, LatentConfig, ModelConfig, RopeScaling

BASE = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    max_position_embeddings=64,
    rope_theta=100.0,
)
ATTENTION: dict[str, dict[str, Any]] = {
    "mha": {"num_key_value_heads": 4},
    "gqa with bias": {"attention_bias": True, "attention_output_bias": True},
    "mqa with norms": {"num_key_value_heads": 1, "qk_norm": True, "head_dim": 12},
    "sliding": {"sliding_window": 5},
    "some sliding": {
        "sliding_window": 4,
        "layer_types": ("sliding_attention", "full_attention", "sliding_attention"),
    },
    "capped": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 5.0},
    "latent": {"attention": "mla", "latent": LatentConfig(kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=6)},
    "latent with narrow queries": {
        "attention": "mla",
        "latent": LatentConfig(kv_lora_rank=12, q_lora_rank=10, qk_rope_head_dim=6, v_head_dim=9),
        "sliding_window": 6,
    },
}
POSITION: dict[str, dict[str, Any]] = {
    "rope": {},
    "llama3": {"rope_scaling": RopeScaling(rope_type="llama3", factor=4, original_max_position_embeddings=16)},
    "yarn": {"rope_scaling": RopeScaling(rope_type="yarn", factor=4, original_max_position_embeddings=16)},
    "learned": {"position_encoding": "learned"},
    "sinusoidal": {"position_encoding": "sinusoidal"},
    "none": {"position_encoding": "none"},
}
FEED_FORWARD: dict[str, dict[str, Any]] = {
    "swiglu": {},
    "gelu": {"mlp": "gelu"},
    "moe": {"mlp": "moe", "experts": ExpertsConfig(num_experts=5, moe_intermediate_size=24, dense_layers=(1,))},
}
NORM: dict[str, dict[str, Any]] = {
    "pre": {},
    "post": {"norm_placement": "post", "norm": "layer_norm"},
    "both": {"norm_placement": "both", "norm": "offset_rms_norm", "scale_embeddings": True},
}
MIXES = {
    ", ".join(names): msgspec.structs.replace(
        BASE, **ATTENTION[names[0]], **POSITION[names[1]], **FEED_FORWARD[names[2]], **NORM[names[3]]
    )
    for names in itertools.product(ATTENTION, POSITION, FEED_FORWARD, NORM)
}


def build(config: ModelConfig) -> DecoderModel:
    torch.manual_seed(3)
    model = DecoderModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() < 2 else 0.0, 0.15)
    return model
