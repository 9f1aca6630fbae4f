"""Writes a small random model of every family and rotary scaling, with the logits that it gives here."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm.checkpoint import write_model
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.models.families import FAMILIES

SMALL: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
    "hidden_act": "silu",
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
FAMILY_VALUES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 7},
    "qwen2": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "qwen3": {"head_dim": 16},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 56, "mlp_only_layers": [1]},
    "qwen3_moe": EXPERTS | {"head_dim": 16, "norm_topk_prob": True},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 8},
    "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "deepseek_v2": {
        "num_key_value_heads": 4,
        "kv_lora_rank": 24,
        "q_lora_rank": 20,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "v_head_dim": 10,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.5,
        "topk_method": "group_limited_greedy",
        "n_group": 3,
        "topk_group": 2,
    },
}
YARN = {"rope_type": "yarn", "rope_theta": 5e4, "factor": 4.0, "original_max_position_embeddings": 24}
WINDOWS = {"num_hidden_layers": 5, "sliding_window": 8}
# Families whose scalings are those of the ones above.
PLAIN: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 16, "hidden_act": "gelu_pytorch_tanh"},
    "gemma3_text": WINDOWS | {"head_dim": 16, "sliding_window_pattern": 3, "hidden_act": "gelu_pytorch_tanh"},
    "phi3": {"sliding_window": 9},
    "smollm3": {"num_hidden_layers": 5},
    "granite": {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 6.0},
    "olmo2": {},
    "olmo3": WINDOWS,
    "seed_oss": {"head_dim": 16},
    "ministral3": {"head_dim": 16, "rope_parameters": YARN | {"llama_4_scaling_beta": 0.3}},
    "ernie4_5": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "stablelm": {"partial_rotary_factor": 0.5, "use_qkv_bias": True},
    "cohere2": WINDOWS | {"logit_scale": 0.3},
    "exaone4": WINDOWS,
    "gpt_oss": {
        "head_dim": 16,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "sliding_window": 7,
        "rope_parameters": YARN | {"truncate": False},
    },
    "deepseek_v3": FAMILY_VALUES["deepseek_v2"] | {"topk_method": "noaux_tc", "norm_topk_prob": True},
}
ORIGINAL = {"original_max_position_embeddings": 24}


def scalings(pairs: int) -> dict[str, dict[str, Any]]:
    """Returns every kind of rotary scaling, for heads of so many pairs of channels."""
    return {
        "linear": {"factor": 3.0},
        "dynamic": {"factor": 2.0},
        "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
        "yarn": {"factor": 4.0, **ORIGINAL},
        "longrope": {
            "factor": 4.0,
            "short_factor": [1.0] * pairs,
            "long_factor": [1.0 + pair for pair in range(pairs)],
            **ORIGINAL,
        },
    }


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields a name and a `config.json` for each pair of a family and a scaling."""
    for family, own in FAMILY_VALUES.items():
        values = SMALL | own | {"model_type": family}
        yield family, values
        if family == "gpt2":
            continue
        pairs = own.get("qk_rope_head_dim", own.get("head_dim", 12)) // 2
        for kind, scaling in scalings(pairs).items():
            yield f"{family}-{kind}", values | {"rope_parameters": {"rope_type": kind, "rope_theta": 5e4, **scaling}}
    for family, own in PLAIN.items():
        yield family, SMALL | own | {"model_type": family}


@torch.no_grad()
def write(directory: Path, values: dict[str, Any]) -> None:
    """Writes a model with random weights, token ids and the logits for them."""
    torch.manual_seed(7)
    model = DecoderModel(FAMILIES[values["model_type"]].config_from(values)).eval()
    for parameter in model.parameters():  # norms and biases start alike: move them so that a mix-up shows
        if parameter.dim() < 2:
            parameter.add_(0.1 * torch.randn_like(parameter))
    directory.mkdir(parents=True)
    write_model(directory, model, None)
    token_ids = torch.randint(0, 101, (40,))
    logits = model(token_ids, positions_of((40,)), ForwardContext.for_sequences((40,)))
    np.savez(directory / "expected.npz", token_ids=token_ids.numpy(), logits=logits.numpy())


if __name__ == "__main__":
    for name, config in cases():
        write(Path(sys.argv[1]) / name, config)
