"""Costs of a model: parameters, floating-point operations, memory."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from llm.models.decoder import cache_widths
from llm.models.hf import empty_model
from llm.settings.model import ModelConfig

Optimizer: TypeAlias = Literal["adamw", "muon", "adamw8bit", "sgd", "none"]
# Moments beside each parameter; Muon's are counted as if all parameters were hidden matrices.
_OPTIMIZER_BYTES: dict[Optimizer, int] = {"adamw": 8, "muon": 4, "adamw8bit": 2, "sgd": 4, "none": 0}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training needs or, with optimizer `none`, a forward pass.

    Attributes:
        weights: Bytes of the parameters.
        gradients: Bytes of the gradients, as many as the parameters'.
        optimizer: Bytes of the optimizer's fp32 moments.
        activations: Bytes kept for the backward pass, including the logits.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of all parts in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations


def num_parameters(config: ModelConfig) -> int:
    """Returns the number of trainable parameters without allocating them; a tied embedding counts once."""
    return empty_model(config).num_parameters()


def num_active_parameters(config: ModelConfig) -> int:
    """Returns the number of parameters that one token uses: only the chosen experts of a mixture."""
    experts = config.experts
    if experts is None or config.mlp != "moe":
        return num_parameters(config)
    idle = experts.num_experts - experts.num_experts_per_tok
    layers = config.num_hidden_layers - len(config.dense_layers)
    return num_parameters(config) - layers * idle * 3 * config.hidden_size * experts.moe_intermediate_size


def flops_per_token(config: ModelConfig, context_length: int | None = None) -> float:
    """Returns the floating-point operations of a forward and backward pass per token, for model FLOPs utilization.

    Each parameter that multiplies a token costs six operations (embedding look-ups cost none). Each channel of a head
    costs twelve per visible token: half of the context on average, or the window.

    Args:
        config: The model's settings.
        context_length: Tokens per sequence; None uses the model's maximum.

    Source: Chowdhery et al. 2022, "PaLM", appendix B, with causal attention counted once.
    """
    length = context_length or config.max_position_embeddings
    looked_up = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    if config.position_encoding == "learned":
        looked_up += config.max_position_embeddings * config.hidden_size
    products = 6.0 * (num_active_parameters(config) - looked_up)
    latent = config.latent
    width = latent.qk_nope_head_dim + latent.qk_rope_head_dim if latent else config.head_width
    value = latent.v_head_dim if latent else config.head_width
    seen = sum(_mean_seen(length, config.window_of(layer)) for layer in range(config.num_hidden_layers))
    return products + 6.0 * config.num_attention_heads * (width + value) * seen


def _mean_seen(length: int, window: int | None) -> float:
    """Returns the mean number of tokens that a token attends to, including itself."""
    window = min(window or length, length)
    return (window * (window + 1) / 2 + (length - window) * window) / length


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Returns the bytes of one token's keys and values over all layers."""
    heads, key_width, value_width = cache_widths(config)
    return config.num_hidden_layers * heads * (key_width + value_width) * dtype.itemsize


def estimate_memory(
    config: ModelConfig,
    batch: int,
    length: int,
    dtype: torch.dtype = torch.bfloat16,
    optimizer: Optimizer = "adamw",
    *,
    gradient_checkpointing: bool = False,
) -> MemoryEstimate:
    """Estimates the bytes that training needs with fp32 weights and products in `dtype`, within 20 % of measurements.

    The estimate is for the operations of a GPU; on a CPU, activations take up to a third less.

    Args:
        config: The model's settings.
        batch: Sequences per forward pass.
        length: Tokens per sequence.
        dtype: Number type of products and activations.
        optimizer: `adamw`, `muon`, `adamw8bit`, `sgd` (with momentum), or `none` for a forward pass with weights in
            `dtype`.
        gradient_checkpointing: Whether the backward pass recomputes blocks.
    """
    parameters, tokens = num_parameters(config), batch * length
    if optimizer == "none":
        widest = max(config.vocab_size, 8 * config.hidden_size)
        return MemoryEstimate(parameters * dtype.itemsize, 0, 0, tokens * widest * dtype.itemsize)
    block = _block_activations(config)
    kept = (
        config.hidden_size * config.num_hidden_layers + block
        if gradient_checkpointing
        else (block * config.num_hidden_layers)
    )
    # Logits in the products' dtype, as fp32 for the loss, and their gradient.
    logits = config.vocab_size * (dtype.itemsize + 8)
    activations = tokens * (kept * dtype.itemsize + logits)
    return MemoryEstimate(4 * parameters, 4 * parameters, _OPTIMIZER_BYTES[optimizer] * parameters, activations)


def _block_activations(config: ModelConfig) -> int:
    """Returns the numbers per token that a block keeps for its backward pass; attention recomputes its weights."""
    width, passes = config.intermediate_size, 1
    if config.experts is not None and config.mlp == "moe":
        width, passes = config.experts.moe_intermediate_size, config.experts.num_experts_per_tok
    inside = passes * (4 if config.mlp != "gelu" else 2) * width
    # Tokens are copied to the expert they go to, and what it makes of them is kept to weigh it.
    copies = 3 * passes * config.hidden_size if config.mlp == "moe" else config.hidden_size
    return 4 * config.hidden_size + _attention_activations(config) + inside + copies


def _attention_activations(config: ModelConfig) -> int:
    latent = config.latent
    if latent is not None:
        head = 6 * (latent.qk_nope_head_dim + latent.qk_rope_head_dim) + 3 * latent.v_head_dim
        return config.num_attention_heads * head + 3 * latent.kv_lora_rank
    return 3 * config.head_width * (config.num_attention_heads + config.num_key_value_heads)
