"""Models whose matrices are split over the ranks of a process group: what can be split, how, and its loading."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor, nn

from llm.models.decoder import DecoderModel
from llm.models.families import Family, Piece
from llm.models.hf import empty_model, is_finite, place, raise_if_broken
from llm.models.layers.attention import Attention
from llm.models.layers.mlp import MLP, SwiGLU
from llm.models.layers.norm import LayerNorm, LayerNormNoBias, OffsetRMSNorm, RMSNorm
from llm.models.layers.rotary import LearnedPositions, PositionEncoding, RotaryEmbedding, SinusoidalPositions
from llm.models.layers.sharded import RowParallelLinear, VocabularyParallelEmbedding, VocabularyParallelHead
from llm.models.tensor_files import OnDisk
from llm.registry import registry
from llm.settings.model import ModelConfig

# A component of the user's own may mix channels across heads, and isn't known in the other processes.
_COVERED: dict[str, tuple[type, ...]] = {
    "attention": (Attention,),
    "mlp": (SwiGLU, MLP),
    "norm": (RMSNorm, OffsetRMSNorm, LayerNorm, LayerNormNoBias),
    "position_encoding": (RotaryEmbedding, LearnedPositions, SinusoidalPositions, PositionEncoding),
}


@dataclass(frozen=True)
class Shard:
    """The part of a model that a rank holds.

    Attributes:
        rank: Number of the rank, from 0.
        size: Number of ranks.
    """

    rank: int
    size: int

    def of(self, count: int) -> range:
        """Returns this rank's part of `count` consecutive rows; the last ranks have fewer if `size` doesn't divide."""
        width = -(-count // self.size)
        return range(min(self.rank * width, count), min((self.rank + 1) * width, count))


def obstacle(config: ModelConfig, size: int) -> tuple[str, str] | None:
    """Returns why a model can't be split over `size` ranks, with a way out; None if it can.

    Each rank has whole heads, whole groups of queries, and as many channels of the feed-forward as the others.
    """
    for kind, covered in _COVERED.items():
        name = getattr(config, kind)
        if registry.get(kind, name) not in covered:
            return f"{kind} {name!r} isn't split", _ALONE
    if config.qk_norm and config.qk_norm_type == "whole":
        return "a norm over the queries of all heads isn't split", _ALONE
    counts = {
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "intermediate_size": config.intermediate_size,
    }
    common = math.gcd(*counts.values())
    allowed = ", ".join(str(count) for count in range(1, common + 1) if common % count == 0)
    for name, count in counts.items():
        if count % size:
            return f"it doesn't divide the model's `{name}` {count}", f"this model takes {allowed}"
    if (size - 1) * -(-config.vocab_size // size) >= config.vocab_size:
        return f"a vocabulary of {config.vocab_size} entries leaves a rank none", "use a smaller number"
    return None


_ALONE = "leave `tensor_parallel_size` out and, for more requests, start several servers"


def shard_config(config: ModelConfig, size: int) -> ModelConfig:
    """Returns the config of a rank's model: its heads and its channels of the feed-forward, the whole vocabulary."""
    return msgspec.structs.replace(
        config,
        num_attention_heads=config.num_attention_heads // size,
        num_key_value_heads=config.num_key_value_heads // size,
        head_dim=config.head_width,
        intermediate_size=config.intermediate_size // size,
    )


def empty_shard(config: ModelConfig, shard: Shard) -> DecoderModel:
    """Builds a rank's model without memory for its parameters; `config` is the whole model's."""
    model = empty_model(shard_config(config, shard.size))
    rows = shard.of(config.vocab_size)
    with torch.device("meta"):
        for layer in model.layers:
            layer.attention.o_proj = _row_parallel(layer.attention.o_proj)  # type: ignore[union-attr, arg-type]
            layer.mlp.down_proj = _row_parallel(layer.mlp.down_proj)  # type: ignore[union-attr, arg-type]
        model.embed_tokens = VocabularyParallelEmbedding(rows, config.hidden_size)  # type: ignore[assignment]
        model.lm_head = VocabularyParallelHead(rows, config.hidden_size, config.vocab_size)  # type: ignore[assignment]
    if config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model.eval()


def _row_parallel(linear: nn.Linear) -> RowParallelLinear:
    return RowParallelLinear(linear.in_features, linear.out_features, linear.bias is not None)


@dataclass(frozen=True)
class Source:
    """The whole model that a rank reads its parts from.

    Attributes:
        model: The model without memory, from `empty_model`.
        family: Family that names the tensors.
        tensors: The tensors on disk.
    """

    model: DecoderModel
    family: Family
    tensors: Mapping[str, OnDisk]


def fill_shard(model: DecoderModel, source: Source, shard: Shard, *, dtype: torch.dtype, device: torch.device) -> None:
    """Fills a rank's model with its parts of the tensors on disk, of which the rest isn't read.

    Args:
        model: Model from `empty_shard`.
        source: The whole model.
        shard: The part to read.
        dtype: Type of the parameters.
        device: Device of the parameters.

    Raises:
        CheckpointError: A weight is not a number.
    """
    broken: list[str] = []
    for name, empty in list(model.named_parameters()):
        tensor = torch.empty(empty.shape, dtype=dtype, device=device)
        pieces = source.family.pieces(name, tensor, model.config)
        for piece, found in zip(pieces, _parts(source, name, tensor.shape, shard, dtype), strict=True):
            if isinstance(found, Tensor):
                piece.view.copy_(found)
            else:
                piece.fill(found.load(dtype))
            if not is_finite(piece):
                broken.append(piece.name)
        place(model, name, nn.Parameter(tensor, requires_grad=False))
    raise_if_broken(broken, dtype)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight


def _parts(source: Source, name: str, own: torch.Size, shard: Shard, dtype: torch.dtype) -> Iterator[Tensor | OnDisk]:
    """Yields what a rank holds of each tensor on disk that our parameter `name` is made of, or the tensor if all."""
    whole = source.model.get_parameter(name).shape
    dim = next((dim for dim, (count, held) in enumerate(zip(whole, own, strict=True)) if count != held), None)
    if dim is None:
        for piece in source.family.pieces(name, torch.empty(whole, device="meta"), source.model.config):
            yield source.tensors[piece.name]
        return
    kept = _kept(source.model, name, whole[dim], shard)
    numbers = torch.arange(whole[dim])
    # Each element is its row's or column's number, without memory for them.
    numbered = (numbers if dim == len(whole) - 1 else numbers[:, None]).expand(whole)
    for piece in source.family.pieces(name, numbered, source.model.config):
        yield _slice(source.tensors[piece.name].load(dtype), piece, kept)


def _kept(whole: DecoderModel, name: str, count: int, shard: Shard) -> Tensor:
    """Returns which rows or columns of a whole parameter a rank holds; of joined matrices, some of each."""
    module, _, leaf = name.rpartition(".")
    joined: dict[str, tuple[int, ...]] = getattr(whole.get_submodule(module), "joined_rows", {})
    if not joined:
        outer, _, inner = module.rpartition(".")
        declared = getattr(whole.get_submodule(outer), "joined_rows", {})
        joined = {leaf: declared[f"{inner}.weight"]} if f"{inner}.weight" in declared else {}
    parts, start = joined.get(leaf, (count,)), 0
    kept = []
    for part in parts if sum(parts) == count else (count,):
        own = shard.of(part)
        kept.append(torch.arange(start + own.start, start + own.stop))
        start += part
    return torch.cat(kept)


def _slice(found: Tensor, part: Piece, kept: Tensor) -> Tensor:
    """Returns the part of a tensor on disk that a rank holds, in the order of our parameter.

    Args:
        found: The tensor, mapped: only what is copied from it is read.
        part: The tensor's place in our whole parameter, whose elements are their row's or column's number there.
        kept: Numbers that the rank holds.
    """
    dim = next(dim for dim, stride in enumerate(part.view.stride()) if stride)
    numbers = part.view.movedim(dim, 0).reshape(part.view.shape[dim], -1)[:, 0]
    places = torch.isin(numbers, kept).nonzero().flatten()
    if part.rows is not None and dim != 0:
        return _at(found, dim, places)[part.rows]
    return _at(found, dim, places if part.rows is None else part.rows[places])


def _at(tensor: Tensor, dim: int, places: Tensor) -> Tensor:
    first, count = int(places[0]), len(places)
    if int(places[-1]) - first + 1 == count and bool((places.diff() == 1).all()):
        return tensor.narrow(dim, first, count)
    return tensor.index_select(dim, places)
