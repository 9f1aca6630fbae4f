"""Embeddings and log-probabilities of given texts, computed in batches without a cache or sampling."""

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from llm.errors import ContextLengthError, InvalidArgumentError
from llm.models import DecoderModel, ForwardContext, positions_of

Pooling = Literal["mean", "last"]
# Logits rows computed at a time; few enough to fit in memory beside any model.
_ROWS = 256


class Score(msgspec.Struct, frozen=True):
    """The log-probability of a continuation.

    Attributes:
        token_ids: Token ids of the continuation.
        token_logprobs: Natural logarithm of each token's probability, given all tokens before it.
    """

    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]

    @property
    def logprob(self) -> float:
        """The log-probability of the whole continuation, which is the sum over its tokens."""
        return sum(self.token_logprobs)


@torch.inference_mode()
def embed(
    model: DecoderModel, sequences: Sequence[Sequence[int]], pooling: Pooling, max_batch_tokens: int
) -> NDArray[np.float32]:
    """Returns one unit-length vector per sequence, pooled from the model's last hidden states (after the final norm).

    Args:
        model: The model in eval mode.
        sequences: Token ids of each sequence, at least one.
        pooling: `mean` averages over tokens; `last` takes the last token's hidden state.
        max_batch_tokens: Largest number of tokens in one pass.

    Returns:
        fp32 `[N, C]`.

    Raises:
        InvalidArgumentError: A sequence is empty, or the pooling is unknown.
        ContextLengthError: A sequence is longer than the model's context.
    """
    if pooling not in ("mean", "last"):
        raise InvalidArgumentError(f"`pooling` must be 'mean' or 'last', got {pooling!r}")
    vectors = [np.zeros((0, model.config.hidden_size), dtype=np.float32)]
    for batch in _batches(model, sequences, max_batch_tokens):
        hidden_states = model.norm(_hidden_states(model, batch)).float()
        parts = torch.split(hidden_states, [len(sequence) for sequence in batch])
        pooled = torch.stack([part.mean(0) if pooling == "mean" else part[-1] for part in parts])
        vectors.append(torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy())
    return np.concatenate(vectors)


@torch.inference_mode()
def score(
    model: DecoderModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], max_batch_tokens: int
) -> list[Score]:
    """Returns the log-probability of each continuation after its prompt.

    Args:
        model: The model in eval mode.
        pairs: Token ids of a prompt, at least one, and of its continuation.
        max_batch_tokens: Largest number of tokens in one pass.

    Raises:
        InvalidArgumentError: A prompt is empty.
        ContextLengthError: A prompt and its continuation together are longer than the model's context.
    """
    if any(not prompt for prompt, _ in pairs):
        raise InvalidArgumentError("a prompt must hold at least one token to score its continuation, got none")
    found: list[Score] = []
    sequences = [[*prompt, *continuation] for prompt, continuation in pairs]
    for batch in _batches(model, sequences, max_batch_tokens):
        parts = torch.split(_hidden_states(model, batch), [len(sequence) for sequence in batch])
        for hidden_states, (prompt, continuation) in zip(parts, pairs[len(found) :], strict=False):
            rows = hidden_states[len(prompt) - 1 : -1]  # each row predicts the next token
            targets = torch.tensor(continuation, dtype=torch.int64, device=rows.device)
            logprobs = [
                model.logits(part).float().log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
                for part, ids in zip(torch.split(rows, _ROWS), torch.split(targets, _ROWS), strict=True)
            ]
            found.append(Score(tuple(continuation), tuple(torch.cat(logprobs).tolist()) if continuation else ()))
    return found


def _batches(
    model: DecoderModel, sequences: Sequence[Sequence[int]], max_batch_tokens: int
) -> Iterator[list[Sequence[int]]]:
    """Yields the sequences in order, as many at a time as `max_batch_tokens` allows, at least one."""
    longest = model.config.max_position_embeddings
    batch: list[Sequence[int]] = []
    num_tokens = 0
    for sequence in sequences:
        if not sequence:
            raise InvalidArgumentError("a text must hold at least one token, got none")
        if len(sequence) > longest:
            raise ContextLengthError(f"the context is {longest} tokens, got {len(sequence)}\nhint: shorten the text")
        if batch and num_tokens + len(sequence) > max_batch_tokens:
            yield batch
            batch, num_tokens = [], 0
        batch.append(sequence)
        num_tokens += len(sequence)
    if batch:
        yield batch


def _hidden_states(model: DecoderModel, batch: Sequence[Sequence[int]]) -> torch.Tensor:
    """Returns the last hidden states of all tokens of all sequences, `[T, C]`."""
    device = model.embed_tokens.weight.device
    lengths = [len(sequence) for sequence in batch]
    ids = torch.tensor([token for sequence in batch for token in sequence], device=device)
    return model.hidden_states(ids, positions_of(lengths, device), ForwardContext.for_sequences(lengths))
