"""Embeddings and log-probabilities of given texts, computed in batches without a cache or sampling."""

from collections.abc import Generator, Sequence

import msgspec
import torch

from llm.errors import InvalidArgumentError
from llm.inference.embedding import (
    Pooling,
    Vectors,
    batches,
    check_sequences,
    embedding_passes,
    hidden_states_of,
    reward_passes,
)
from llm.models import DecoderModel, Targets


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


def embed(model: DecoderModel, sequences: Sequence[Sequence[int]], pooling: Pooling, max_batch_tokens: int) -> Vectors:
    """Returns one unit-length vector per sequence; see `embedding_passes`.

    Raises:
        InvalidArgumentError: A sequence is empty, or the pooling is unknown.
        ContextLengthError: A sequence is longer than the model's context.
    """
    return _finished(embedding_passes(model, sequences, pooling, max_batch_tokens))


def rewards(model: DecoderModel, sequences: Sequence[Sequence[int]], max_batch_tokens: int) -> Vectors:
    """Returns the reward of each sequence, fp32 `[N]`; see `reward_passes`.

    Raises:
        InvalidArgumentError: The model gives no rewards, or a sequence is empty.
        ContextLengthError: A sequence is longer than the model's context.
    """
    return _finished(reward_passes(model, sequences, max_batch_tokens))


def _finished(passes: Generator[None, None, Vectors]) -> Vectors:
    while True:
        try:
            next(passes)
        except StopIteration as end:
            vectors: Vectors = end.value
            return vectors


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
    check_sequences(sequences, model.config.max_position_embeddings, model.config.vocab_size)
    for batch in batches(sequences, max_batch_tokens):
        parts = torch.split(hidden_states_of(model, batch), [len(sequence) for sequence in batch])
        for hidden_states, (prompt, continuation) in zip(parts, pairs[len(found) :], strict=False):
            rows = hidden_states[len(prompt) - 1 : -1]  # each row predicts the next token
            targets = torch.tensor(continuation, dtype=torch.int64, device=rows.device)
            found.append(Score(tuple(continuation), tuple(model.logprobs(rows, Targets(targets)).tolist())))
    return found
