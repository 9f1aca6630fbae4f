"""Maps a family's config and tensor names to ours.

This file knows no model; each family's file describes its own.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import msgspec
import torch
from torch import Tensor

from llm.errors import CheckpointError, ConfigError
from llm.models.families.checks import check_values
from llm.models.families.rope import read_rope, write_rope
from llm.settings.merge import from_builtins
from llm.settings.model import ModelConfig

Values: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """Maps one tensor on disk to its place in one of our parameters.

    Attributes:
        name: Name of the tensor on disk.
        view: Part of our parameter that has the shape of the tensor on disk.
        rows: Row order; row `i` of the view is row `rows[i]` on disk. None: the same order.
        is_folded: Whether the view's last two dimensions are one on disk.
    """

    name: str
    view: Tensor
    rows: Tensor | None = None
    is_folded: bool = False

    @property
    def shape(self) -> list[int]:
        """Returns the sizes of the tensor on disk."""
        sizes = list(self.view.shape)
        return [*sizes[:-2], sizes[-2] * sizes[-1]] if self.is_folded else sizes

    def fill(self, tensor: Tensor) -> None:
        """Copies the tensor on disk into our parameter, in the parameter's dtype."""
        tensor = tensor.view(self.view.shape) if self.is_folded else tensor
        self.view.copy_(tensor if self.rows is None else tensor[self.rows])

    def extract(self) -> Tensor:
        """Returns a copy of the tensor as on disk."""
        if self.rows is None:
            tensor = self.view.detach().clone(memory_format=torch.contiguous_format)
            return tensor.flatten(-2) if self.is_folded else tensor
        tensor = self.view.detach().clone(memory_format=torch.contiguous_format)
        tensor[self.rows.to(tensor.device)] = self.view.detach()
        return tensor


Cut: TypeAlias = Callable[[Tensor, ModelConfig], list[Piece]]


# The head of one number, which all families call the same.
HEAD = "score"
REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class Family:
    """Maps the `config.json` and the tensor names of one family to ours.

    Attributes:
        model_type: Value of `model_type` in `config.json`.
        architecture: Class of `transformers` that opens the family.
        read: Converts the values of a `config.json` to fields of `ModelConfig`.
        write: Converts a `ModelConfig` to values of `config.json`; fields without a key in the family are left out.
        top: Names on disk of our modules outside the blocks.
        block: Names on disk of our modules inside block `{layer}`: one name, several names for consecutive rows, or a
            function that cuts our tensor.
        prefix: Prefix of the names inside a block.
        ignored: Pattern of tensors on disk that are not parameters.
        required: Keys of `config.json` that have no default.
        takes_any: Whether an unlisted parameter, or one with sizes unlike a listed one, keeps our name.
    """

    model_type: str
    architecture: str
    read: Callable[[Mapping[str, Any]], Values]
    write: Callable[[ModelConfig], Values]
    top: Mapping[str, str]
    block: Mapping[str, "str | tuple[str, ...] | BlockCut"]
    prefix: str = "model.layers.{layer}."
    ignored: str = r".*\.rotary_emb\.inv_freq"
    required: tuple[str, ...] = REQUIRED
    takes_any: bool = False

    def config_from(self, values: Mapping[str, Any]) -> ModelConfig:
        """Reads a `config.json`.

        Raises:
            CheckpointError: A feature that this package does not support, or values that contradict each other.
        """
        missing = [key for key in self.required if values.get(key) is None]
        if missing:
            raise CheckpointError(f"config.json lacks {', '.join(missing)}")
        check_values(values)
        try:
            fields = self.read(values) | {"family": self.model_type}
            return from_builtins({key: value for key, value in fields.items() if value is not None}, ModelConfig)
        except ConfigError as error:
            raise CheckpointError(f"config.json: {error}") from error
        except KeyError as error:
            raise CheckpointError(f"config.json lacks `{error.args[0]}`, which every {self.model_type} has") from error
        except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"config.json has a value of the wrong type: {error}") from error

    def config_to(self, config: ModelConfig) -> Values:
        """Returns the values of a `config.json`; `difference` lists the fields that they cannot hold."""
        named = {"architectures": [self.architecture], "model_type": self.model_type}
        return named | self.write(config)

    def difference(self, config: ModelConfig) -> list[str]:
        """Returns the fields of `config` that this family cannot hold, as `field = value`."""
        try:
            back = self.config_from(self.config_to(config))
        except (CheckpointError, ConfigError, KeyError, TypeError, ValueError) as error:
            return [str(error).splitlines()[0]]
        wanted, got = (msgspec.to_builtins(normalised(each)) for each in (config, back))
        return [f"{key} = {wanted[key]!r}" for key in wanted if wanted[key] != got[key]]

    def pieces(self, name: str, ours: Tensor, config: ModelConfig) -> list[Piece]:
        """Returns the tensors on disk that make up our parameter `name`."""
        match = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
        if match is None:
            module, _, leaf = name.rpartition(".")
            if module == HEAD:
                return [Piece(name, ours)]
            known = module in self.top or not self.takes_any
            return [Piece(f"{self.top[module]}.{leaf}" if known else f"model.{name}", ours)]
        layer, inner = match.groups()
        prefix = self.prefix.format(layer=layer)
        found = self._cut(inner, ours, config)
        return [replace(piece, name=prefix + piece.name) for piece in found]

    def _cut(self, inner: str, ours: Tensor, config: ModelConfig) -> list[Piece]:
        module, _, leaf = inner.rpartition(".")
        cut = self.block.get(inner, self.block.get(module))
        if cut is None:
            if self.takes_any:
                return [Piece(inner, ours)]
            raise KeyError(f"{self.model_type} has no {inner}")
        if isinstance(cut, BlockCut):
            return cut.cut(ours, config)
        names = (cut,) if isinstance(cut, str) else cut
        sizes = _sizes(module, config, len(names))
        if len(names) > 1 and sum(sizes) != ours.shape[0] and self.takes_any:
            return [Piece(inner, ours)]
        return rows(ours, tuple(f"{each}.{leaf}" for each in names), sizes)


@dataclass(frozen=True)
class BlockCut:
    """Cuts our tensor with a function, where a list of names is not enough."""

    cut: Cut


def rows(ours: Tensor, names: Sequence[str], sizes: Sequence[int]) -> list[Piece]:
    """Splits consecutive rows of our tensor into named tensors; a single name takes all rows."""
    if len(names) == 1:
        return [Piece(names[0], ours)]
    return [Piece(name, part) for name, part in zip(names, torch.split(ours, list(sizes)), strict=True)]


def _sizes(module: str, config: ModelConfig, parts: int) -> list[int]:
    """Returns the number of rows of q, k and v, or of gate and up, in the fused weight."""
    if parts == 2:
        shared = config.experts.shared_expert_intermediate_size if config.experts and "shared" in module else 0
        return [shared or config.intermediate_size] * 2
    query, kv = config.num_attention_heads * config.head_width, config.num_key_value_heads * config.head_width
    return [query, kv, kv]


def experts(names: str, gate: str, up: str, down: str) -> dict[str, BlockCut]:
    """Returns the cuts of stacked experts, which have one tensor per expert and projection on disk.

    Args:
        names: Pattern of the names on disk, with `{expert}` and `{part}`.
        gate: Name of the gate projection on disk.
        up: Name of the up projection on disk.
        down: Name of the down projection on disk.
    """

    def cut_gate_up(ours: Tensor, config: ModelConfig) -> list[Piece]:
        width = ours.shape[1] // 2
        parts = ((gate, slice(0, width)), (up, slice(width, None)))
        return [
            Piece(names.format(expert=expert, part=part), ours[expert, span])
            for expert in range(len(ours))
            for part, span in parts
        ]

    def cut_down(ours: Tensor, config: ModelConfig) -> list[Piece]:
        return [Piece(names.format(expert=expert, part=down), ours[expert]) for expert in range(len(ours))]

    return {"mlp.experts.gate_up_proj": BlockCut(cut_gate_up), "mlp.experts.down_proj": BlockCut(cut_down)}


def transposed(name: str) -> BlockCut:
    """Returns the cut of a matrix that is stored transposed on disk."""
    return BlockCut(lambda ours, config: [Piece(name, ours.T if ours.dim() == 2 else ours)])


LLAMA_TOP = {"embed_tokens": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
LLAMA_BLOCK: dict[str, str | tuple[str, ...] | BlockCut] = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "attention.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.o_proj": "self_attn.o_proj",
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": "mlp.down_proj",
}
QK_NORMS: dict[str, str] = {"attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"}

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "initializer_range",
    "attention_dropout",
)


def read_sizes(values: Mapping[str, Any], partial: float | None = None) -> Values:
    """Reads the fields that most families name alike, including the rotary settings; see `read_rope` for `partial`."""
    fields = {key: values.get(key) for key in _SIZES}
    if fields["num_key_value_heads"] is None:
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    fields["head_dim"] = values.get("head_dim")
    fields["tie_word_embeddings"] = bool(values.get("tie_word_embeddings", False))
    return fields | read_rope(values, partial)


def write_sizes(config: ModelConfig) -> Values:
    """Converts back the fields of `read_sizes`."""
    fields = {key: getattr(config, key) for key in _SIZES}
    tied = {"tie_word_embeddings": config.tie_word_embeddings}
    return fields | {"head_dim": config.head_width} | tied | write_rope(config)


ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_python_tanh": "gelu_pytorch_tanh",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
}


def read_activation(values: Mapping[str, Any], key: str = "hidden_act", usual: str = "silu") -> str:
    """Returns our name of the activation under `key`.

    Raises:
        CheckpointError: An activation that this package does not support.
    """
    require(values, {key: tuple(ACTIVATIONS)})
    return ACTIVATIONS[values.get(key) or usual]


def require(values: Mapping[str, Any], allowed: Mapping[str, Sequence[Any]]) -> None:
    """Checks that each key has one of its allowed values, or none.

    Raises:
        CheckpointError: Another value.
    """
    wrong = [
        f"`{key}` must be {' or '.join(map(repr, choices))}, got {values[key]!r}"
        for key, choices in allowed.items()
        if values.get(key) is not None and values[key] not in choices
    ]
    if wrong:
        raise CheckpointError(
            "config.json asks for features that this package does not support:\n  " + "\n  ".join(wrong)
        )


def read_windows(values: Mapping[str, Any]) -> Values:
    """Reads which layers of a Qwen model use a sliding window.

    Without `layer_types`, layers from `max_window_layers` on do, if `use_sliding_window` is true.
    """
    window = values.get("sliding_window") if values.get("use_sliding_window") else None
    types = values.get("layer_types")
    if window is None:
        return {}
    if types is None:
        first = values.get("max_window_layers", 28)
        types = [
            "sliding_attention" if layer >= first else "full_attention" for layer in range(values["num_hidden_layers"])
        ]
    if "sliding_attention" not in types:
        return {}
    return {"sliding_window": window, "layer_types": None if "full_attention" not in types else list(types)}


def write_windows(config: ModelConfig) -> Values:
    """Converts back the fields of `read_windows`."""
    if config.sliding_window is None:
        return {"use_sliding_window": False, "sliding_window": None}
    types = config.layer_types or ("sliding_attention",) * config.num_hidden_layers
    return {
        "use_sliding_window": True,
        "sliding_window": config.sliding_window,
        "max_window_layers": 0,
        "layer_types": list(types),
    }


def normalised(config: ModelConfig) -> ModelConfig:
    """Returns the config in one canonical form, without its family and its training-only fields."""
    types = config.layer_types
    if config.sliding_window is None or (types is not None and "full_attention" not in types):
        types = None
    changes: Values = {"family": None, "layer_types": types, "dropout": 0.0}
    if config.experts is not None and config.mlp == "moe":
        changes["experts"] = msgspec.structs.replace(config.experts, router_z_weight=0.0)
        if not config.dense_layers:
            changes["intermediate_size"] = config.experts.moe_intermediate_size
    if config.latent is None:
        changes["head_dim"] = config.head_width
    if config.mlp in ("swiglu", "moe"):
        changes |= {"mlp_bias": bool(config.mlp_bias), "hidden_act": config.hidden_act or "silu"}
    elif config.mlp == "gelu":
        changes |= {"mlp_bias": config.mlp_bias is not False, "hidden_act": config.hidden_act or "gelu"}
    if config.query_pre_attn_scalar == config.head_width or config.attention_multiplier is not None:
        changes["query_pre_attn_scalar"] = None
    if config.attention_multiplier == (config.query_pre_attn_scalar or config.head_width) ** -0.5:
        changes |= {"attention_multiplier": None}
    if config.sliding_window is None or (
        config.rope_local_base_freq == config.rope_theta and config.rope_scaling is None
    ):
        changes["rope_local_base_freq"] = None
    if not config.qk_norm:
        changes["qk_norm_type"] = "head"
    changes["unrotated_layers"] = tuple(sorted(set(config.unrotated_layers)))
    return msgspec.structs.replace(config, **changes)


@functools.cache
def defaults() -> Values:
    """Returns the values of a `ModelConfig` without arguments."""
    values: Values = msgspec.to_builtins(ModelConfig())
    return values
