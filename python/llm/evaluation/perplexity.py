"""Perplexity and bits per byte of a text."""

import math
from collections.abc import Callable, Iterator

import msgspec

from llm.errors import ConfigError, DataError
from llm.evaluation.likelihood import Pair, begin_token, likelihoods
from llm.evaluation.report import Metric
from llm.inference import Session


class Window(msgspec.Struct, frozen=True):
    """A part of a text with its log-probability given the text before it.

    Attributes:
        start: Index of its first token in the text.
        num_tokens: Number of tokens in the part.
        logprob: Natural logarithm of the part's probability.
    """

    start: int
    num_tokens: int
    logprob: float


def perplexity(
    session: Session, text: str, stride: int | None, advance: Callable[[int], None]
) -> tuple[dict[str, Metric], list[Window]]:
    """Returns perplexity per token and bits per byte of a text, and the windows that they sum up.

    Windows are as long as the context and overlap so that each adds `stride` tokens, which are predicted from all
    tokens before them in the window. The first token is predicted from the token that begins a text, or else from an
    end token; if the tokenizer has neither, the first token is not counted.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 3.1.

    Args:
        session: The engine's session.
        text: The text.
        stride: New tokens of each window; None fills the context, so that windows overlap by one token.
        advance: Called with the number of tokens of each finished window.

    Raises:
        DataError: The text has too few tokens.
        ConfigError: The stride does not fit the context.
    """
    longest = session.engine.max_model_len
    if stride is not None and stride >= longest:
        raise ConfigError(f"`stride` must be below the context of {longest} tokens, got {stride}")
    prefix = begin_token(session)
    token_ids = session.encode(text, add_special_tokens=False)
    sequence = [*prefix, *token_ids]
    if len(sequence) < 2:
        least = "1 token" if prefix else "2 tokens"
        raise DataError(f"a text must hold at least {least}, got {len(token_ids)}")
    bounds = list(_bounds(len(sequence), longest, stride or longest - 1))
    pairs = (Pair(sequence[low:start], sequence[start:stop]) for low, start, stop in bounds)
    windows = []
    for (_, start, stop), likelihood in zip(bounds, likelihoods(session, pairs), strict=True):
        windows.append(Window(start - len(prefix), stop - start, likelihood.logprob))
        advance(stop - start)
    nll = -math.fsum(window.logprob for window in windows)
    uncounted = b"" if prefix else session.tokenizer.id_to_piece(token_ids[0])
    num_bytes = len(text.encode()) - len(uncounted)
    num_tokens = len(sequence) - 1
    metrics = {
        "perplexity": Metric(math.exp(nll / num_tokens)),
        "bits_per_byte": Metric(nll / math.log(2) / num_bytes),
        "num_tokens": Metric(num_tokens),
        "num_bytes": Metric(num_bytes),
    }
    return metrics, windows


def _bounds(length: int, longest: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yields a window's first token, its first predicted token and its end, over a sequence of `length` tokens."""
    start, stop = 1, min(length, longest)
    while start < length:
        yield max(0, stop - longest), start, stop
        start, stop = stop, min(length, stop + stride)
