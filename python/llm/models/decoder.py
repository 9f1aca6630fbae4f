"""The decoder-only transformer; training and serving use the same module."""

import math
from dataclasses import replace
from typing import cast

import msgspec
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm.models.context import ForwardContext
from llm.models.layers.attention import Attention
from llm.models.layers.cpu_block import train_block
from llm.models.layers.moe import MoE
from llm.models.layers.norm import add_norm
from llm.models.layers.rotary import PositionEncoding, Rotation, query_scale
from llm.models.logprobs import Targets, token_logprobs, top_logprobs
from llm.registry import registry
from llm.settings.model import ModelConfig


class TransformerBlock(nn.Module):
    """A residual block of attention and feed-forward, with norms before, after or on both sides of each.

    Source: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", figure 1; Gemma Team 2024,
    "Gemma 2", section 2 (both sides).
    """

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        norm = registry.get("norm", config.norm)
        mlp = "swiglu" if config.mlp == "moe" and layer_idx in config.dense_layers else config.mlp
        self.placement, self.is_parallel = config.norm_placement, config.parallel_block
        self.multiplier = config.residual_multiplier
        self.norm1 = norm(config.hidden_size, config.rms_norm_eps)
        self.attention = registry.get("attention", config.attention)(config, layer_idx)
        self.norm2 = nn.Identity() if self.is_parallel else norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = registry.get("mlp", mlp)(config, layer_idx)
        if config.norm_placement == "both":
            self.post_norm1 = norm(config.hidden_size, config.rms_norm_eps)
            self.post_norm2 = norm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: Tensor, rotation: Rotation | None, context: ForwardContext) -> Tensor:
        """Maps `[T, C]` to `[T, C]`."""
        is_plain = self.placement == "pre" and not self.is_parallel and self.multiplier == 1.0
        if is_plain and not self.dropout.p:
            trained = train_block(self, hidden_states, rotation, context)
            if trained is not None:
                return trained
        if self.placement == "post":
            hidden_states = self.norm1(hidden_states + self.dropout(self.attention(hidden_states, rotation, context)))
            return cast(Tensor, self.norm2(hidden_states + self.dropout(self.mlp(hidden_states))))
        if self.placement == "inside":
            hidden_states = hidden_states + self._part(self.norm1(self.attention(hidden_states, rotation, context)))
            return hidden_states + self._part(self.norm2(self.mlp(hidden_states)))
        normed = self.norm1(hidden_states)
        mixed = self.attention(normed, rotation, context)
        if self.is_parallel:
            return hidden_states + self._part(mixed) + self._part(self.mlp(normed))
        if self.placement == "both":
            mixed = self.post_norm1(mixed)
        hidden_states, normed = add_norm(hidden_states, self._part(mixed), self.norm2)
        output = self.mlp(normed)
        if self.placement == "both":
            output = self.post_norm2(output)
        return hidden_states + self._part(output)

    def _part(self, update: Tensor) -> Tensor:
        """Returns what a part of the block adds to the residual stream."""
        dropped: Tensor = self.dropout(update)
        return dropped if self.multiplier == 1.0 else dropped * self.multiplier


class DecoderModel(nn.Module):
    """Maps flattened token ids to logits.

    Attributes:
        gradient_checkpointing: Whether training recomputes each block in the backward pass instead of keeping its
            activations, which needs less memory and about 33 % more time.

    Example:
        >>> import torch
        >>> from llm import DecoderModel, ModelConfig
        >>> from llm.models.context import ForwardContext, positions_of
        >>> model = DecoderModel(ModelConfig(vocab_size=300))
        >>> lengths = (5, 3)
        >>> token_ids = torch.zeros(8, dtype=torch.int64)
        >>> logits = model(token_ids, positions_of(lengths), ForwardContext.for_sequences(lengths))
        >>> tuple(logits.shape)
        (8, 300)
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        # The module's constructor draws random numbers, which on the meta device imports PyTorch's compiler and takes
        # seconds.
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.hidden_size, _weight=torch.empty(config.vocab_size, config.hidden_size)
        )
        self.positions: PositionEncoding = registry.get("position_encoding", config.position_encoding)(config)
        self.local_positions: PositionEncoding | None = None
        if config.rope_local_base_freq is not None:
            local = msgspec.structs.replace(config, rope_theta=config.rope_local_base_freq, rope_scaling=None)
            self.local_positions = registry.get("position_encoding", config.position_encoding)(local)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(TransformerBlock(config, idx) for idx in range(config.num_hidden_layers))
        norm = registry.get("norm", config.norm)
        self.norm = nn.Identity() if config.norm_placement == "post" else norm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self._initialise()

    def forward(self, token_ids: Tensor, positions: Tensor, context: ForwardContext) -> Tensor:
        """Computes next-token logits.

        Args:
            token_ids: int64 `[T]`, all sequences concatenated.
            positions: int64 `[T]`, each token's position in its own sequence.
            context: Boundaries of the sequences, and the cache if there is one.

        Returns:
            `[S, V]` for the rows in `context.logits_indices`, otherwise `[T, V]`; with `context.targets`, the labels'
            log-probabilities, fp32 of their shape.
        """
        hidden_states = self.hidden_states(token_ids, positions, context)
        if context.targets is not None:
            return self.logprobs(hidden_states, context.targets)
        if context.logits_indices is not None:
            hidden_states = hidden_states[context.logits_indices]
        return self.logits(hidden_states)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Returns next-token logits `[S, V]` for rows `[S, C]` of the residual stream after the last block."""
        logits: Tensor = self.lm_head(self._last_norm(hidden_states))
        cap = self.config.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def logprobs(self, hidden_states: Tensor, targets: Targets) -> Tensor:
        """Returns the labels' log-probabilities, fp32 of their shape, for rows `[T, C]` of the residual stream.

        Needs far less memory than `logits`; see `token_logprobs`.
        """
        normed = self._last_norm(hidden_states)
        return token_logprobs(normed, self.lm_head.weight, targets, self.config.final_logit_softcapping)

    def top_logprobs(
        self, hidden_states: Tensor, count: int, *, temperature: float = 1.0, vocab_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the most probable of the first `vocab_size` tokens after rows `[T, C]` of the residual stream.

        See `llm.models.top_logprobs`.
        """
        normed, weight = self._last_norm(hidden_states), self.lm_head.weight[:vocab_size]
        softcap = self.config.final_logit_softcapping
        return top_logprobs(normed, weight, count, temperature=temperature, softcap=softcap)

    def _last_norm(self, hidden_states: Tensor) -> Tensor:
        normed: Tensor = self.norm(hidden_states)
        return normed if self.config.logit_scale == 1.0 else normed * self.config.logit_scale

    def hidden_states(self, token_ids: Tensor, positions: Tensor, context: ForwardContext) -> Tensor:
        """Returns the residual stream `[T, C]` after the last block, before the last norm."""
        hidden_states = self.embed(token_ids, positions)
        scale = query_scale(positions, self.config.rope_scaling)
        context = context if scale is None else replace(context, query_scale=scale)
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for layer, rotation in zip(self.layers, self.rotations(positions), strict=True):
            if recompute:
                hidden_states = checkpoint(layer, hidden_states, rotation, context, use_reentrant=False)
            else:
                hidden_states = layer(hidden_states, rotation, context)
        return hidden_states

    def rotations(self, positions: Tensor) -> list[Rotation | None]:
        """Returns each layer's rotation."""
        config, rotation = self.config, self.positions.rotation(positions)
        local = rotation if self.local_positions is None else self.local_positions.rotation(positions)
        found = [rotation if config.window_of(layer) is None else local for layer in range(config.num_hidden_layers)]
        for layer in config.unrotated_layers:
            found[layer] = None
        return found

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Returns the residual stream `[T, C]` before the first block."""
        embedded: Tensor = self.embed_tokens(token_ids)
        if self.config.scale_embeddings:
            # Rounded to the weights' dtype first, as Gemma's published code does.
            embedded = embedded * torch.tensor(self.config.hidden_size**0.5, dtype=embedded.dtype)
        if self.config.embedding_multiplier != 1.0:
            embedded = embedded * self.config.embedding_multiplier
        placed = self.positions.embed(positions)
        if placed is not None:
            embedded = embedded + placed.to(embedded.dtype)
        return cast(Tensor, self.dropout(embedded))

    def router_losses(self, loads: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the last pass's router losses by name, averaged over layers with experts; empty without experts.

        Args:
            loads: `expert_loads` of the batch that the last pass is a part of; None takes those of the pass.
        """
        routings = [module.routing for module in self.modules() if isinstance(module, MoE) and module.routing]
        if not routings:
            return {}
        shares = [None] * len(routings) if loads is None else loads.unbind()
        balance = [routing.load_balancing_loss(share) for routing, share in zip(routings, shares, strict=True)]
        return {
            "load_balancing": torch.stack(balance).mean(),
            "router_z": torch.stack([routing.z_loss() for routing in routings]).mean(),
        }

    def expert_loads(self) -> Tensor:
        """Returns each expert's share of the last pass's assignments, fp32 `[layers with experts, E]`."""
        routings = [module.routing for module in self.modules() if isinstance(module, MoE) and module.routing]
        return torch.stack([routing.load() for routing in routings]) if routings else torch.empty(0, 0)

    @property
    def dtype(self) -> torch.dtype:
        """Type of activations and of weights that are not quantised."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def num_parameters(self) -> int:
        """Returns the number of trainable parameters; a tied embedding counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def _initialise(self) -> None:
        """Draws normally distributed weights; projections into the residual stream shrink with its depth.

        Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
        """
        if self.embed_tokens.weight.is_meta:
            return
        deviation = self.config.initializer_range
        residual = deviation / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2 and not name.endswith("bias"):
                leaf = name.removesuffix(".weight")
                parameter.normal_(0.0, residual if leaf.endswith(("o_proj", "down_proj")) else deviation)
            elif name.endswith("bias"):
                parameter.zero_()


def cache_widths(config: ModelConfig) -> tuple[int, int, int]:
    """Returns the number of heads in the key-value cache and the widths of a head's key and value.

    An attention component with another cache defines a static method of this name.
    """
    component = registry.get("attention", config.attention)
    widths: tuple[int, int, int] = getattr(component, "cache_widths", Attention.cache_widths)(config)
    return widths
