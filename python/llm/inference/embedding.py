"""Embeddings of token sequences, computed in passes of a bounded number of tokens."""

from collections.abc import Generator, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm.errors import ContextLengthError, InvalidArgumentError
from llm.inference.kv_cache import KVCache
from llm.models import DecoderModel, ForwardContext, PagedCache, positions_of
from llm.models.reward import RewardModel

Pooling = Literal["mean", "last"]
Vectors = NDArray[np.float32]

_BLOCK_TOKENS = 16


def embedding_passes(
    model: DecoderModel, sequences: Sequence[Sequence[int]], pooling: Pooling, max_pass_tokens: int
) -> Generator[None, None, Vectors]:
    """Computes one unit-length vector per sequence from the model's last hidden states, after the final norm.

    Yields after each pass over the model, so that a caller can do other work in between. A sequence that is longer than
    a pass is computed in parts, with keys and values of its own that are freed at its end; shorter sequences share
    passes and need no cache. PyTorch computes each pass, at about the cost of a prompt of the same length in PyTorch.

    Args:
        model: The model in eval mode.
        sequences: Token ids of each sequence, at least one.
        pooling: `mean` averages over tokens; `last` takes the last token's hidden state.
        max_pass_tokens: Largest number of tokens in one pass.

    Returns:
        fp32 `[N, C]`.

    Raises:
        InvalidArgumentError: A sequence is empty or holds an unknown id, or the pooling is unknown.
        ContextLengthError: A sequence is longer than the model's context.
    """
    if pooling not in ("mean", "last"):
        raise InvalidArgumentError(f"`pooling` must be 'mean' or 'last', got {pooling!r}")
    check_sequences(sequences, model.config.max_position_embeddings, model.config.vocab_size)
    vectors = [np.zeros((0, model.config.hidden_size), dtype=np.float32)]
    for batch in batches(sequences, max_pass_tokens):
        if len(batch[0]) <= max_pass_tokens:
            vectors.append(_unit(_pooled(model, batch, pooling)))
        else:
            vectors.append(_unit((yield from _pooled_in_parts(model, batch[0], pooling, max_pass_tokens))))
        yield
    return np.concatenate(vectors)


def reward_passes(
    model: DecoderModel, sequences: Sequence[Sequence[int]], max_pass_tokens: int
) -> Generator[None, None, Vectors]:
    """Computes the reward of each sequence; yields after each pass, as `embedding_passes` does.

    Args:
        model: A `RewardModel` in eval mode.
        sequences: Token ids of each sequence, at least one.
        max_pass_tokens: Largest number of tokens in one pass.

    Returns:
        fp32 `[N]`.

    Raises:
        InvalidArgumentError: The model gives no rewards, or a sequence is empty or holds an unknown id.
        ContextLengthError: A sequence is longer than the model's context.
    """
    if not isinstance(model, RewardModel):
        raise InvalidArgumentError("the model gives no rewards\nhint: `llm reward` trains one that does")
    check_sequences(sequences, model.config.max_position_embeddings, model.config.vocab_size)
    found = [np.zeros(0, dtype=np.float32)]
    for batch in batches(sequences, max_pass_tokens):
        if len(batch[0]) <= max_pass_tokens:
            states = _pooled(model, batch, "last")
        else:
            states = yield from _pooled_in_parts(model, batch[0], "last", max_pass_tokens)
        with torch.inference_mode():
            found.append(model.rewards(states).cpu().numpy())
        yield
    return np.concatenate(found)


def check_sequences(sequences: Sequence[Sequence[int]], longest: int, vocab_size: int) -> None:
    """Checks that each sequence fits a context of `longest` tokens and holds ids below `vocab_size` only.

    Raises:
        InvalidArgumentError: A sequence is empty, or holds an unknown id.
        ContextLengthError: A sequence is longer than the context.
    """
    for sequence in sequences:
        if not sequence:
            raise InvalidArgumentError("a text must hold at least one token, got none")
        if len(sequence) > longest:
            raise ContextLengthError(f"the context is {longest} tokens, got {len(sequence)}\nhint: shorten the text")
        if max(sequence) >= vocab_size or min(sequence) < 0:
            raise InvalidArgumentError(
                f"token ids must be below the vocabulary's size {vocab_size}, got {max(sequence)}"
            )


def batches(sequences: Sequence[Sequence[int]], max_pass_tokens: int) -> Iterator[list[Sequence[int]]]:
    """Yields the sequences in order, as many at a time as `max_pass_tokens` allows, at least one."""
    batch: list[Sequence[int]] = []
    num_tokens = 0
    for sequence in sequences:
        if batch and num_tokens + len(sequence) > max_pass_tokens:
            yield batch
            batch, num_tokens = [], 0
        batch.append(sequence)
        num_tokens += len(sequence)
    if batch:
        yield batch


def hidden_states_of(model: DecoderModel, batch: Sequence[Sequence[int]]) -> Tensor:
    """Returns the residual stream of all tokens of whole sequences after the last block, `[T, C]`."""
    device = model.device
    lengths = [len(sequence) for sequence in batch]
    ids = torch.tensor([token for sequence in batch for token in sequence], device=device)
    return model.hidden_states(ids, positions_of(lengths, device), ForwardContext.for_sequences(lengths))


def _unit(pooled: Tensor) -> Vectors:
    vectors: Vectors = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
    return vectors


@torch.inference_mode()
def _pooled(model: DecoderModel, batch: Sequence[Sequence[int]], pooling: Pooling) -> Tensor:
    hidden_states = model.norm(hidden_states_of(model, batch)).float()
    parts = torch.split(hidden_states, [len(sequence) for sequence in batch])
    return torch.stack([part.mean(0) if pooling == "mean" else part[-1] for part in parts])


def _pooled_in_parts(
    model: DecoderModel, sequence: Sequence[int], pooling: Pooling, max_pass_tokens: int
) -> Generator[None, None, Tensor]:
    """Yields between passes over the parts of one sequence and returns its pooled state, `[1, C]`."""
    num_blocks = -(-len(sequence) // _BLOCK_TOKENS)
    cache = KVCache.allocate(model.config, num_blocks, _BLOCK_TOKENS, model.dtype, model.device)
    total = torch.zeros(1, model.config.hidden_size, device=model.device)
    for start in range(0, len(sequence), max_pass_tokens):
        part = sequence[start : start + max_pass_tokens]
        states = _part_states(model, part, start, cache)
        total = total + states.sum(0, keepdim=True) if pooling == "mean" else states[-1:]
        if start + len(part) < len(sequence):
            yield
    return total / len(sequence) if pooling == "mean" else total


@torch.inference_mode()
def _part_states(model: DecoderModel, part: Sequence[int], start: int, cache: KVCache) -> Tensor:
    """Returns the final hidden states of a part of a sequence that begins at position `start`, fp32 `[T, C]`."""
    device = model.device
    positions = torch.arange(start, start + len(part), device=device)
    paged = PagedCache(
        keys=cache.keys,
        values=cache.values,
        slot_mapping=positions,  # the sequence has all blocks of its cache, in order
        block_tables=torch.arange(cache.num_blocks, dtype=torch.int32, device=device)[None],
    )
    context = ForwardContext((len(part),), (start + len(part),), cache=paged)
    hidden_states = model.hidden_states(torch.tensor(part, device=device), positions, context)
    states: Tensor = model.norm(hidden_states).float()
    return states
