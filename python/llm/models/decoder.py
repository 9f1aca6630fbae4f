"""The decoder-only transformer, the same module in training and in serving."""

import math

import torch
from torch import Tensor, nn

from llm.config import ModelConfig
from llm.models.context import ForwardContext
from llm.registry import registry


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each behind its own norm and around a residual connection.

    Source: Touvron et al. 2023, «LLaMA», section 2.2 (pre-normalisation).
    """

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        norm = registry.get("norm", config.norm)
        self.norm1 = norm(config.hidden_size, config.rms_norm_eps)
        self.attention = registry.get("attention", config.attention)(config, layer_idx)
        self.norm2 = norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = registry.get("mlp", config.mlp)(config.hidden_size, config.intermediate_size)

    def forward(self, hidden_states: Tensor, rotation: tuple[Tensor, Tensor], context: ForwardContext) -> Tensor:
        """Maps `[T, C]` to `[T, C]`."""
        hidden_states = hidden_states + self.attention(self.norm1(hidden_states), rotation, context)
        output: Tensor = hidden_states + self.mlp(self.norm2(hidden_states))
        return output


class DecoderModel(nn.Module):
    """Token ids to logits over flattened tokens.

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
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary = registry.get("position_encoding", config.position_encoding)(
            config.head_width, config.max_position_embeddings, config.rope_theta
        )
        self.layers = nn.ModuleList(TransformerBlock(config, idx) for idx in range(config.num_hidden_layers))
        self.norm = registry.get("norm", config.norm)(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self._initialise()

    def forward(self, token_ids: Tensor, positions: Tensor, context: ForwardContext) -> Tensor:
        """Computes next-token logits.

        Args:
            token_ids: int64 `[T]`, all sequences one after the other.
            positions: int64 `[T]`, each token's place in its own sequence.
            context: Where sequences begin, and the cache if there is one.

        Returns:
            `[S, V]` for the rows that `context.logits_indices` names, else `[T, V]`.
        """
        hidden_states = self.embed_tokens(token_ids)
        rotation = self.rotary.at(positions)
        for layer in self.layers:
            hidden_states = layer(hidden_states, rotation, context)
        if context.logits_indices is not None:
            hidden_states = hidden_states[context.logits_indices]
        logits: Tensor = self.lm_head(self.norm(hidden_states))
        return logits

    def num_parameters(self) -> int:
        """Trainable numbers, a tied embedding counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _initialise(self) -> None:
        """Normal weights; projections back into the residual stream shrink with its depth.

        Source: Radford et al. 2019, «Language Models are Unsupervised Multitask Learners», section 2.3.
        """
        deviation = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            scale = 1 / math.sqrt(2 * self.config.num_hidden_layers) if residual else 1.0
            with torch.no_grad():
                parameter.normal_(0.0, deviation * scale)
