"""What a model says of given text: vectors for it, and how likely it is. No cache, no sampling, many texts at once."""

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from llm.errors import ContextLengthError, InvalidArgumentError
from llm.models import DecoderModel, ForwardContext, positions_of

Pooling = Literal["mean", "last"]
# Rows of logits at a time: as many as fit in memory beside any model.
_ROWS = 256


class Score(msgspec.Struct, frozen=True):
    """How likely a continuation is.

    Attributes:
        token_ids: Of the continuation.
        token_logprobs: The natural logarithm of each token's probability, given all before it.
    """

    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]

    @property
    def logprob(self) -> float:
        """Of the whole continuation: the sum over its tokens."""
        return sum(self.token_logprobs)


@torch.inference_mode()
def embed(
    model: DecoderModel, sequences: Sequence[Sequence[int]], pooling: Pooling, max_batch_tokens: int
) -> NDArray[np.float32]:
    """One vector a sequence from the normed residual stream after the last block, of unit length.

    Args:
        model: In eval mode.
        sequences: Token ids, at least one each.
        pooling: `mean` over tokens, or the `last` token's.
        max_batch_tokens: In one pass.

    Returns:
        fp32 `[N, C]`.

    Raises:
        InvalidArgumentError: An empty sequence, or an unknown pooling.
        ContextLengthError: A sequence longer than the model's context.
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
    """How likely each continuation is after its prompt.

    Args:
        model: In eval mode.
        pairs: Token ids of a prompt, at least one, and of its continuation.
        max_batch_tokens: In one pass.

    Raises:
        InvalidArgumentError: An empty prompt.
        ContextLengthError: Prompt and continuation are longer than the model's context.
    """
    if any(not prompt for prompt, _ in pairs):
        raise InvalidArgumentError("a prompt must hold at least one token to score what follows it, got none")
    found: list[Score] = []
    sequences = [[*prompt, *continuation] for prompt, continuation in pairs]
    for batch in _batches(model, sequences, max_batch_tokens):
        parts = torch.split(_hidden_states(model, batch), [len(sequence) for sequence in batch])
        for hidden_states, (prompt, continuation) in zip(parts, pairs[len(found) :], strict=False):
            rows = hidden_states[len(prompt) - 1 : -1]  # each row says what comes after it
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
    """The sequences in turn, as many at a time as `max_batch_tokens` allows, at least one."""
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
    """Of all tokens of all sequences, `[T, C]`."""
    device = model.embed_tokens.weight.device
    lengths = [len(sequence) for sequence in batch]
    ids = torch.tensor([token for sequence in batch for token in sequence], device=device)
    return model.hidden_states(ids, positions_of(lengths, device), ForwardContext.for_sequences(lengths))
