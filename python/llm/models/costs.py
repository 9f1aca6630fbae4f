"""Costs of a model: parameters, floating-point operations, memory."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from llm.models.decoder import cache_widths
from llm.models.hf import empty_model
from llm.models.layers.cached import kept_width
from llm.models.logprobs import CHUNK_LOGITS
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


def num_multiplied_parameters(config: ModelConfig) -> int:
    """Returns the number of parameters that multiply one token, which a decode step reads: look-ups are left out."""
    looked_up = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    if config.position_encoding == "learned":
        looked_up += config.max_position_embeddings * config.hidden_size
    return num_active_parameters(config) - looked_up


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
    products = 6.0 * num_multiplied_parameters(config)
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
    """Returns the bytes of one token's keys and values over all layers, in a cache of type `dtype`."""
    heads, *widths = cache_widths(config)
    return config.num_hidden_layers * heads * sum(kept_width(width, dtype) for width in widths) * dtype.itemsize


def estimate_memory(
    config: ModelConfig,
    batch: int,
    length: int,
    dtype: torch.dtype = torch.bfloat16,
    optimizer: Optimizer = "adamw",
    *,
    gradient_checkpointing: bool = False,
    device: str = "cuda",
) -> MemoryEstimate:
    """Estimates the bytes that training needs with fp32 weights and products in `dtype`, within 20 % of measurements.

    Args:
        config: The model's settings.
        batch: Sequences per forward pass.
        length: Tokens per sequence.
        dtype: Number type of products and activations.
        optimizer: `adamw`, `muon`, `adamw8bit`, `sgd` (with momentum), or `none` for a forward pass with weights in
            `dtype`.
        gradient_checkpointing: Whether the backward pass recomputes blocks.
        device: Type of the device; on a `cpu`, blocks have gradients of their own, which keep less.
    """
    parameters, tokens = num_parameters(config), batch * length
    if optimizer == "none":
        widest = max(config.vocab_size, 8 * config.hidden_size)
        return MemoryEstimate(parameters * dtype.itemsize, 0, 0, tokens * widest * dtype.itemsize)
    on_cpu, is_mixed = device == "cpu", dtype.itemsize < 4
    block = _block_bytes(config, dtype, length if on_cpu else None)
    stream = config.hidden_size * (4 if is_mixed else dtype.itemsize)
    # The loss holds a chunk of logits, on a GPU in mixed precision twice, and the rows that they are made of, with a
    # gradient.
    rows = min(tokens, max(1, CHUNK_LOGITS // config.vocab_size))
    is_once = not is_mixed or (on_cpu and config.final_logit_softcapping is None)
    loss = rows * config.vocab_size * (dtype.itemsize + (0 if is_once else 4))
    loss += tokens * (stream + 2 * config.hidden_size * dtype.itemsize)
    if gradient_checkpointing:
        # One block at a time is recomputed, when the loss has its gradient; experts' gradients are as large as a block,
        # and on a CPU what an MLP's second product reads is computed once more, with a gradient.
        again = 2 * config.intermediate_size * dtype.itemsize if on_cpu and _recomputes_activation(config, dtype) else 0
        recomputed = tokens * (2 * block if config.mlp == "moe" else block + again)
        activations = tokens * stream * config.num_hidden_layers + max(recomputed, loss)
    else:
        activations = tokens * block * config.num_hidden_layers + loss
    if is_mixed:  # products use copies of their weights, which blocks with gradients of their own don't keep
        vocabulary = config.vocab_size * config.hidden_size
        looked_up = 0 if config.tie_word_embeddings else vocabulary
        has_own = on_cpu and config.mlp != "moe" and config.latent is None
        activations += (vocabulary if has_own else parameters - looked_up) * dtype.itemsize
    return MemoryEstimate(4 * parameters, 4 * parameters, _OPTIMIZER_BYTES[optimizer] * parameters, activations)


def _recomputes_activation(config: ModelConfig, dtype: torch.dtype) -> bool:
    """Returns whether the backward pass on a CPU computes the MLP's activation again."""
    return config.mlp != "gelu" or (dtype == torch.float32 and config.mlp_bias is False)


def _block_bytes(config: ModelConfig, dtype: torch.dtype, length: int | None) -> int:
    """Returns the bytes per token that a block keeps for its backward pass.

    Args:
        config: The model's settings.
        dtype: Number type of products.
        length: Tokens per sequence on a CPU; None means a GPU, whose attention never keeps its weights.
    """
    width, passes = config.intermediate_size, 1
    if config.experts is not None and config.mlp == "moe":
        width, passes = config.experts.moe_intermediate_size, config.experts.num_experts_per_tok
    on_cpu, is_moe = length is not None, config.mlp == "moe"
    num_inside = 2 if on_cpu and not is_moe else 4
    if config.mlp == "gelu":
        num_inside = 1 if on_cpu and _recomputes_activation(config, dtype) else 2
    inside = passes * num_inside * width
    # Tokens are copied to the expert they go to, and what it makes of them is kept to weigh it.
    copies = 3 * passes * config.hidden_size if is_moe else 0 if on_cpu else config.hidden_size
    # In mixed precision, norms read fp32. Halves of blocks with gradients of their own compute the normed rows again.
    num_kept = is_moe + (config.latent is not None) if on_cpu else 2
    norms = config.hidden_size * (num_kept * dtype.itemsize + 2 * max(4, dtype.itemsize))
    return norms + _attention_bytes(config, dtype, length) + (inside + copies) * dtype.itemsize


def _attention_bytes(config: ModelConfig, dtype: torch.dtype, length: int | None) -> int:
    latent = config.latent
    if latent is None:
        heads = config.num_attention_heads + config.num_key_value_heads
        return config.head_width * (3 if length is None else 2) * heads * dtype.itemsize
    width = latent.qk_nope_head_dim + latent.qk_rope_head_dim
    if length is None:
        head = 6 * width + 3 * latent.v_head_dim
        return (config.num_attention_heads * head + 3 * latent.kv_lora_rank) * dtype.itemsize
    # Heads whose keys and values differ in width keep their weights on a CPU, in fp32.
    head = 2 * width + 2 * latent.v_head_dim + length
    return 4 * config.num_attention_heads * head + 2 * latent.kv_lora_rank * dtype.itemsize
