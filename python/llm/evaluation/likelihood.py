"""Log-likelihoods of continuations, computed in batches by an engine whose prefix cache holds shared contexts."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import msgspec

from llm.errors import InternalError
from llm.inference import Prompt, Session
from llm.settings.sampling import SamplingParams

# Contexts that are computed before their continuations together use at most this share of the cache.
_SHARE_OF_CACHE = 0.5


class Pair(msgspec.Struct, frozen=True):
    """A context of at least one token and its continuation, as token ids."""

    context: list[int]
    continuation: list[int]


class Likelihood(msgspec.Struct, frozen=True):
    """What a model thinks of a continuation.

    Attributes:
        logprob: Natural logarithm of the continuation's probability.
        is_greedy: Whether each of its tokens is the likeliest one.
    """

    logprob: float
    is_greedy: bool


def likelihoods(session: Session, pairs: Iterable[Pair]) -> Iterator[Likelihood]:
    """Yields the likelihood of each continuation, in order.

    What consecutive pairs have in common is computed once, before their continuations: a context with several
    continuations, and the beginning that all contexts of a batch share, such as solved samples. Contexts are cut on the
    left to fit the model.
    """
    limits = session.engine.limits
    cut = (_cut(pair, session.engine.max_model_len) for pair in pairs)
    capacity = int(session.engine.stats()["blocks_total"] * limits.block_size * _SHARE_OF_CACHE)
    for batch in _batches(cut, capacity, limits.max_waiting_requests):
        if limits.enable_prefix_caching:
            for shared in _shared_beginnings(batch, limits.block_size):
                _run(session, [_prompt(token_ids) for token_ids in shared])
        prompts = [_prompt(pair.context + pair.continuation, len(pair.context)) for pair in batch]
        yield from _run(session, prompts)


def encode_pair(session: Session, context: str, continuation: str) -> Pair:
    """Encodes a context and its continuation so that the tokens are those of the whole text.

    Space at the end of the context moves to the continuation, because tokenizers join it with the next word. An empty
    context becomes the token that begins a text, or else the token that ends one.

    Source: Gao et al., "A framework for few-shot language model evaluation" (lm-evaluation-harness), `_encode_pair`.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    if not stripped:
        prefix = begin_token(session)
        token_ids = session.encode(continuation)
        return Pair(prefix, token_ids[len(prefix) :] if token_ids[: len(prefix)] == prefix else token_ids)
    context_ids = session.encode(stripped)
    return Pair(context_ids, session.encode(stripped + continuation)[len(context_ids) :])


def begin_token(session: Session) -> list[int]:
    """Returns the token before a text: BOS, or else an end token; none if the tokenizer has neither."""
    tokenizer = session.tokenizer
    candidates = ([] if tokenizer.bos_id is None else [tokenizer.bos_id]) + list(tokenizer.eos_ids)
    return candidates[:1]


def _cut(pair: Pair, longest: int) -> Pair:
    excess = len(pair.context) + len(pair.continuation) - longest
    return pair if excess <= 0 else Pair(pair.context[min(excess, len(pair.context) - 1) :], pair.continuation)


def _batches(pairs: Iterable[Pair], max_tokens: int, max_pairs: int) -> Iterator[list[Pair]]:
    """Yields the pairs in order, in batches of at most `max_tokens` tokens, with a shared context counted once."""
    batch: list[Pair] = []
    num_tokens = 0
    for _, group in groupby(pairs, key=lambda pair: pair.context):
        members = list(group)
        needed = len(members[0].context) + sum(len(pair.continuation) for pair in members)
        if batch and (num_tokens + needed > max_tokens or len(batch) + len(members) > max_pairs):
            yield batch
            batch, num_tokens = [], 0
        batch += members
        num_tokens += needed
    if batch:
        yield batch


def _shared_beginnings(batch: Sequence[Pair], block_size: int) -> Iterator[list[list[int]]]:
    """Yields lists of prompts to compute first: what all contexts share, then the contexts of several continuations.

    Only whole blocks can be shared, and the last token of a context is computed with each continuation.
    """
    groups = [(context, len(list(group))) for context, group in groupby(batch, key=lambda pair: pair.context)]

    def whole_blocks(token_ids: Sequence[int]) -> list[int]:
        return list(token_ids[: (len(token_ids) - 1) // block_size * block_size])

    common = whole_blocks(_common_beginning([context for context, _ in groups])) if len(groups) > 1 else []
    if common:
        yield [common]
    repeated = [whole_blocks(context) for context, number in groups if number > 1]
    longer = [context for context in repeated if len(context) > len(common)]
    if longer:
        yield longer


def _common_beginning(sequences: Sequence[list[int]]) -> list[int]:
    first, last = min(sequences), max(sequences)  # in order: all others lie between these two
    number = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return first[:number]


def _prompt(token_ids: list[int], start: int | None = None) -> Prompt:
    """Returns a prompt that is only computed, with log-probabilities of its tokens from `start` on."""
    params = SamplingParams(
        max_tokens=0,
        temperature=0.0,
        prompt_logprobs=None if start is None else 0,
        prompt_logprobs_start=start or 0,
    )
    return Prompt(token_ids=token_ids, params=params)


def _run(session: Session, prompts: Sequence[Prompt]) -> list[Likelihood]:
    found: list[Likelihood | None] = [None] * len(prompts)
    with contextlib.closing(session.run(prompts)) as deltas:
        for index, delta in deltas:
            entries = delta.prompt_logprobs or ()
            found[index] = Likelihood(
                logprob=sum(entry.logprob for entry in entries), is_greedy=all(entry.rank == 1 for entry in entries)
            )
    whole = [likelihood for likelihood in found if likelihood is not None]
    if len(whole) != len(prompts):
        raise InternalError("a prompt ended without a score; please report it")
    return whole
