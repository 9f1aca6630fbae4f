"""What a model takes: parameters, floating-point operations, memory."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from llm.models.decoder import cache_widths
from llm.models.hf import empty_model
from llm.settings.model import ModelConfig

Optimizer: TypeAlias = Literal["adamw", "sgd", "none"]
# fp32 moments beside each parameter.
_OPTIMIZER_BYTES: dict[Optimizer, int] = {"adamw": 8, "sgd": 4, "none": 0}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training (or, with optimizer `none`, a forward pass) takes.

    Attributes:
        weights: Parameters.
        gradients: Of the parameters; as large.
        optimizer: Moments, fp32.
        activations: Kept for the backward pass, logits among them.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


def num_parameters(config: ModelConfig) -> int:
    """Trainable numbers, a tied embedding counted once; no memory is taken."""
    return empty_model(config).num_parameters()


def num_active_parameters(config: ModelConfig) -> int:
    """Those that one token meets: of a mixture, the chosen experts alone."""
    experts = config.experts
    if experts is None or config.mlp != "moe":
        return num_parameters(config)
    idle = experts.num_experts - experts.num_experts_per_tok
    layers = config.num_hidden_layers - len(config.dense_layers)
    return num_parameters(config) - layers * idle * 3 * config.hidden_size * experts.moe_intermediate_size


def flops_per_token(config: ModelConfig, context_length: int | None = None) -> float:
    """Operations of a forward and backward pass, for model FLOPs utilisation.

    Six for each parameter that multiplies a token (embeddings that are only looked up don't), and twelve for each
    channel of a head and each token it sees: half of the context on average, or the window.

    Args:
        config: Of the model.
        context_length: Tokens of a sequence; the model's longest by default.

    Source: Chowdhery et al. 2022, «PaLM», appendix B, with causal attention counted once.
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
    """Tokens that a token sees on average, itself included."""
    window = min(window or length, length)
    return (window * (window + 1) / 2 + (length - window) * window) / length


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token over all layers."""
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
    """Bytes that training takes with fp32 weights and products in `dtype`; within a fifth of what is measured.

    Args:
        config: Of the model.
        batch: Sequences in one forward pass.
        length: Tokens of each.
        dtype: Of products and activations.
        optimizer: `adamw`, `sgd` (with momentum), or `none`: a forward pass alone, its weights in `dtype`.
        gradient_checkpointing: Whether blocks are recomputed.
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
    """Numbers a block keeps for its backward pass, for each token; attention's weights are recomputed by its kernel."""
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
