"""What a decoder-only transformer is made of, in Hugging Face's words where it has any."""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from llm.errors import ConfigError

LayerType: TypeAlias = Literal["full_attention", "sliding_attention"]
Activation: TypeAlias = Literal["silu", "gelu", "gelu_pytorch_tanh", "relu"]
Size: TypeAlias = Annotated[int, Meta(ge=1)]
Rate: TypeAlias = Annotated[float, Meta(ge=0.0, lt=1.0)]
Cap: TypeAlias = Annotated[float, Meta(gt=0.0)]


class RopeScaling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How rotary frequencies are stretched for contexts longer than those first trained on."""

    rope_type: Annotated[Literal["linear", "dynamic", "llama3", "yarn", "longrope"], Meta(description="Scaling rule.")]
    factor: Annotated[float, Meta(ge=1.0, description="Factor by which the context grows.")]
    original_max_position_embeddings: (
        Annotated[int, Meta(ge=1, description="Context before; llama3 and yarn need it.")] | None
    ) = None
    low_freq_factor: Annotated[float, Meta(gt=0, description="llama3: longer waves are fully stretched.")] = 1.0
    high_freq_factor: Annotated[float, Meta(gt=0, description="llama3: shorter waves stay unchanged.")] = 4.0
    beta_fast: Annotated[float, Meta(gt=0, description="yarn: turns above which waves are unchanged.")] = 32.0
    beta_slow: Annotated[float, Meta(gt=0, description="yarn: turns below which waves are stretched.")] = 1.0
    attention_factor: Annotated[float, Meta(gt=0, description="yarn: cosine and sine factor.")] | None = None
    mscale: Annotated[float, Meta(ge=0, description="yarn, DeepSeek: replaces `attention_factor`.")] | None = None
    mscale_all_dim: Annotated[float, Meta(ge=0, description="yarn, DeepSeek: whole-head factor.")] | None = None
    truncate: Annotated[bool, Meta(description="yarn: round the ramp's boundaries to whole channels.")] = True
    llama_4_scaling_beta: (
        Annotated[float, Meta(gt=0, description="yarn, Ministral 3: growth of queries beyond that context.")] | None
    ) = None
    short_factor: (
        Annotated[tuple[Cap, ...], Meta(description="longrope: frequency divisors up to that context.")] | None
    ) = None
    long_factor: (
        Annotated[tuple[Cap, ...], Meta(description="longrope: frequency divisors of a model with a longer context.")]
        | None
    ) = None

    def __post_init__(self) -> None:
        """Checks what the rule needs."""
        if self.rope_type in ("llama3", "yarn", "longrope") and self.original_max_position_embeddings is None:
            raise ConfigError(
                f"`rope_scaling.original_max_position_embeddings` must be given for rope_type {self.rope_type!r}"
            )
        if self.rope_type == "longrope" and not (self.short_factor and self.long_factor):
            raise ConfigError("`rope_scaling` must have `short_factor` and `long_factor` for rope_type 'longrope'")
        if self.rope_type == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ConfigError(
                f"`rope_scaling.low_freq_factor` must be below `high_freq_factor` ({self.high_freq_factor}), "
                f"got {self.low_freq_factor}"
            )


class ExpertsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mixture of experts in place of the feed-forward (`mlp = "moe"`)."""

    num_experts: Annotated[int, Meta(ge=1, description="Number of experts per layer.")] = 8
    num_experts_per_tok: Annotated[int, Meta(ge=1, description="Number of experts chosen for each token.")] = 2
    moe_intermediate_size: Annotated[int, Meta(ge=1, description="Hidden width of an expert.")] = 128
    shared_expert_intermediate_size: Annotated[
        int, Meta(ge=0, description="Hidden width of the expert that every token uses; 0: no shared expert.")
    ] = 0
    shared_expert_gate: Annotated[bool, Meta(description="Scale the shared expert's output by a learned gate.")] = False
    softmax_first: Annotated[
        bool, Meta(description="Apply softmax to all experts before choosing; false: to the chosen ones.")
    ] = True
    norm_topk_prob: Annotated[bool, Meta(description="Normalize the chosen experts' weights to a sum of 1.")] = True
    sigmoid_scores: Annotated[bool, Meta(description="Score each expert by a sigmoid in place of the softmax.")] = False
    score_correction: Annotated[
        bool, Meta(description="Add a stored number per expert to the scores when choosing, not when weighing.")
    ] = False
    bias: Annotated[bool, Meta(description="Add biases to the router's and the experts' projections.")] = False
    swiglu_limit: (
        Annotated[float, Meta(gt=0, description="Bound of gate and up in gpt-oss's SwiGLU; null: plain SwiGLU.")] | None
    ) = None
    n_group: Annotated[int, Meta(ge=1, description="Number of equal groups of experts; 1: no groups.")] = 1
    topk_group: Annotated[int, Meta(ge=1, description="Number of groups whose experts a token may choose.")] = 1
    routed_scaling_factor: Annotated[float, Meta(gt=0, description="Factor on the chosen experts' weights.")] = 1.0
    dense_layers: Annotated[tuple[int, ...], Meta(description="Layers with a plain feed-forward.")] = ()
    load_balancing_weight: Annotated[
        float, Meta(ge=0, description="Weight of the load-balancing loss over the tokens of a pass.")
    ] = 0.001
    router_z_weight: Annotated[float, Meta(ge=0, description="Weight of the router z-loss in training.")] = 0.0

    def __post_init__(self) -> None:
        """Checks that there are as many experts as a token needs, in equal groups."""
        if self.num_experts % self.n_group or self.topk_group > self.n_group:
            raise ConfigError(
                f"`model.experts.n_group` must divide `num_experts` ({self.num_experts}) and be at least `topk_group` "
                f"({self.topk_group}), got {self.n_group}"
            )
        if self.num_experts_per_tok > self.num_experts:
            raise ConfigError(
                f"`model.experts.num_experts_per_tok` must be at most `num_experts` ({self.num_experts}), "
                f"got {self.num_experts_per_tok}"
            )


class LatentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Widths of multi-head latent attention (`attention = "mla"`)."""

    kv_lora_rank: Annotated[int, Meta(ge=1, description="Width of the compressed keys and values.")] = 64
    q_lora_rank: (
        Annotated[int, Meta(ge=1, description="Width of the compressed queries; null: no compression.")] | None
    ) = None
    qk_nope_head_dim: Annotated[int, Meta(ge=1, description="Width of a head's part without position.")] = 32
    qk_rope_head_dim: Annotated[int, Meta(ge=2, description="Width of a head's rotated part.")] = 16
    v_head_dim: Annotated[int, Meta(ge=1, description="Width of a head's value.")] = 32


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A decoder-only transformer: sizes, and components by their registered names."""

    vocab_size: Annotated[int, Meta(ge=0, description="Number of rows of the embedding; 0: the tokenizer's.")] = 0
    hidden_size: Annotated[int, Meta(ge=1, description="Width of the residual stream.")] = 128
    intermediate_size: Annotated[int, Meta(ge=1, description="Hidden width of the feed-forward.")] = 344
    num_hidden_layers: Annotated[int, Meta(ge=1, description="Number of transformer blocks.")] = 4
    num_attention_heads: Annotated[int, Meta(ge=1, description="Number of query heads.")] = 4
    num_key_value_heads: Annotated[int, Meta(ge=1, description="Key-value heads; divides the query heads.")] = 2
    head_dim: Annotated[int, Meta(ge=2, description="Width of a head; null: hidden_size / heads.")] | None = None
    max_position_embeddings: Annotated[int, Meta(ge=1, description="Longest context in tokens.")] = 256
    tie_word_embeddings: Annotated[bool, Meta(description="Use the input embedding as the output projection.")] = True
    scale_embeddings: Annotated[bool, Meta(description="Scale embeddings by √`hidden_size`.")] = False
    embedding_multiplier: Annotated[float, Meta(gt=0, description="Factor on embeddings.")] = 1.0
    residual_multiplier: Annotated[
        float, Meta(gt=0, description="Factor on what each part of a block adds to the residual stream.")
    ] = 1.0
    logit_scale: Annotated[float, Meta(gt=0, description="Factor on logits.")] = 1.0
    initializer_range: Annotated[float, Meta(gt=0, description="Standard deviation of new weights.")] = 0.02
    dropout: Annotated[Rate, Meta(description="Dropout after embedding, attention and feed-forward.")] = 0.0
    attention_dropout: Annotated[Rate, Meta(description="Dropout rate of attention weights, in training.")] = 0.0

    attention: Annotated[str, Meta(description="Name of the attention component.")] = "gqa"
    attention_bias: Annotated[bool, Meta(description="Add a bias to the query, key and value projections.")] = False
    attention_output_bias: Annotated[bool, Meta(description="Add a bias to the projection after attention.")] = False
    qk_norm: Annotated[bool, Meta(description="Apply RMS norm to each query and key head before rotation.")] = False
    qk_norm_type: Annotated[
        Literal["head", "offset", "whole"],
        Meta(
            description="`qk_norm` of each head, of each head with its scale stored minus one, or of all heads at once."
        ),
    ] = "head"
    attention_sinks: Annotated[
        bool, Meta(description="Learn a score per head that takes attention away from all tokens.")
    ] = False
    sliding_window: Annotated[Size, Meta(description="Tokens that a token attends to; null: all.")] | None = None
    layer_types: (
        Annotated[tuple[LayerType, ...], Meta(description="Attention type of each layer; null: all alike.")] | None
    ) = None
    query_pre_attn_scalar: (
        Annotated[Cap, Meta(description="Scores are divided by its root; null: by that of a head's width.")] | None
    ) = None
    attention_multiplier: (
        Annotated[Cap, Meta(description="Factor on scores; null: by `query_pre_attn_scalar`.")] | None
    ) = None
    attn_logit_softcapping: Annotated[Cap, Meta(description="Bound of scores (tanh); null: none.")] | None = None
    final_logit_softcapping: Annotated[Cap, Meta(description="Bound of logits (tanh); null: none.")] | None = None
    latent: Annotated[LatentConfig, Meta(description="Widths of latent attention.")] | None = None

    mlp: Annotated[str, Meta(description="Name of the feed-forward component.")] = "swiglu"
    mlp_bias: (
        Annotated[bool, Meta(description="Bias of the feed-forward's projections; null: the component's.")] | None
    ) = None
    hidden_act: Annotated[Activation, Meta(description="Activation; null: the component's own.")] | None = None
    experts: Annotated[ExpertsConfig, Meta(description='The mixture of `mlp = "moe"`.')] | None = None

    norm: Annotated[str, Meta(description="Name of the norm component.")] = "rms_norm"
    rms_norm_eps: Annotated[float, Meta(gt=0, description="Value added under the norm's square root.")] = 1e-5
    norm_placement: Annotated[
        Literal["pre", "post", "both", "inside"],
        Meta(description="Norms before each part, after the sum, on both sides, or of each part's output alone."),
    ] = "pre"
    parallel_block: Annotated[
        bool, Meta(description="Attention and feed-forward read the same norm and are added together.")
    ] = False

    position_encoding: Annotated[str, Meta(description="Name of the position encoding.")] = "rope"
    rope_theta: Annotated[float, Meta(gt=1, description="Base of the rotary frequencies.")] = 10_000.0
    partial_rotary_factor: Annotated[
        float, Meta(gt=0, le=1, description="Share of a head's channels, from the first, that is rotated.")
    ] = 1.0
    unrotated_layers: Annotated[tuple[int, ...], Meta(description="Layers without rotary positions.")] = ()
    rope_local_base_freq: (
        Annotated[
            float,
            Meta(gt=1, description="Rotary base of layers with a window, without scaling; null: as other layers."),
        ]
        | None
    ) = None
    rope_scaling: Annotated[RopeScaling, Meta(description="Scaling for contexts beyond training.")] | None = None

    family: Annotated[str, Meta(description="Hugging Face family to save as, where it can hold the model.")] | None = (
        None
    )

    def __post_init__(self) -> None:
        """Checks the rules across fields."""
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"`model.hidden_size` must be a multiple of `model.num_attention_heads` ({self.num_attention_heads}), "
                f"got {self.hidden_size}\nhint: set `model.head_dim` to decouple them"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"`model.num_key_value_heads` must divide `model.num_attention_heads` ({self.num_attention_heads}), "
                f"got {self.num_key_value_heads}"
            )
        if self.position_encoding == "rope" and self.rotary_width % 2:
            raise ConfigError(f"a head's width must be even for rotary positions, got {self.rotary_width}")
        scaling = self.rope_scaling
        is_longrope = scaling is not None and scaling.rope_type == "longrope"
        for factors in (scaling.short_factor, scaling.long_factor) if scaling and is_longrope else ():
            if len(factors or ()) != self.rotary_width // 2:
                raise ConfigError(
                    f"the factors of rope_type 'longrope' must be {self.rotary_width // 2}, one for each pair of a "
                    f"head's channels, got {len(factors or ())}"
                )
        if self.parallel_block and self.norm_placement != "pre":
            raise ConfigError(
                f"`model.norm_placement` must be 'pre' with `model.parallel_block`, got {self.norm_placement!r}"
            )
        self._check_layers()

    def _check_layers(self) -> None:
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ConfigError(
                f"`model.layer_types` must name all {self.num_hidden_layers} layers, got {len(self.layer_types)}"
            )
        if "sliding_attention" in (self.layer_types or ()) and self.sliding_window is None:
            raise ConfigError("`model.sliding_window` must be given where `model.layer_types` has `sliding_attention`")
        outside = [layer for layer in self.dense_layers if not 0 <= layer < self.num_hidden_layers]
        if outside:
            raise ConfigError(
                f"`model.experts.dense_layers` must be from 0 to {self.num_hidden_layers - 1}, got {outside}"
            )
        outside = [layer for layer in self.unrotated_layers if not 0 <= layer < self.num_hidden_layers]
        if outside:
            raise ConfigError(f"`model.unrotated_layers` must be from 0 to {self.num_hidden_layers - 1}, got {outside}")

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rotary_width(self) -> int:
        """Width of the part of a head that is rotated."""
        return self.latent.qk_rope_head_dim if self.latent else int(self.head_width * self.partial_rotary_factor)

    @property
    def dense_layers(self) -> tuple[int, ...]:
        """Layers with a plain feed-forward in a model with experts."""
        return self.experts.dense_layers if self.experts else ()

    def window_of(self, layer_idx: int) -> int | None:
        """Tokens that a token of this layer sees; `None`: all before it."""
        if self.layer_types is not None and self.layer_types[layer_idx] == "full_attention":
            return None
        return self.sliding_window
