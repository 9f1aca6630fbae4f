"""What a request gives back."""

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length"]


class TokenLogprob(msgspec.Struct, frozen=True):
    """Log-probability of one token, and of the likeliest ones in its place.

    Attributes:
        token_id: The token chosen, or the prompt's.
        logprob: Its natural logarithm, before bias, penalties, temperature and filters.
        top: `(token id, logprob)` of the likeliest tokens, best first.
        rank: Its place among all tokens, 1 for the likeliest.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int = 0


class Delta(msgspec.Struct, frozen=True):
    """What one step added to a request.

    Attributes:
        text: Text that is now certain; may be empty while a character or a stop string is open.
        token_ids: The step's tokens.
        finish_reason: `None` while the request runs on.
        logprobs: One a token, where they were asked for.
        prompt_logprobs: In a request's first delta, one for each prompt token but the first, where asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class GenerationOutput(msgspec.Struct, frozen=True):
    """A whole answer.

    Attributes:
        text: Without special tokens and without the stop string, unless the parameters say so.
        token_ids: Of the answer, the end token included.
        finish_reason: `stop` (end token or stop string) or `length`.
        logprobs: One a token, where they were asked for.
        usage: Token counts of this answer and its prompt.
        others: With `n` above 1, the answers after the first.
        prompt_logprobs: One for each prompt token but the first, where they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None
    usage: Usage
    others: tuple["GenerationOutput", ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def choices(self) -> tuple["GenerationOutput", ...]:
        """All `n` answers to the prompt, this one first."""
        return (self, *self.others)


class OutputBuilder:
    """Joins a request's deltas."""

    def __init__(self, num_prompt_tokens: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._deltas: list[Delta] = []

    def add(self, delta: Delta) -> None:
        """Takes the next delta."""
        self._deltas.append(delta)

    def build(self) -> GenerationOutput:
        """The answer; its last delta carries the finish reason."""
        finish_reason = self._deltas[-1].finish_reason
        assert finish_reason is not None, "a request is built only once it has finished"  # noqa: S101
        token_ids = tuple(token_id for delta in self._deltas for token_id in delta.token_ids)
        logprobs = tuple(entry for delta in self._deltas for entry in delta.logprobs or ())
        return GenerationOutput(
            text="".join(delta.text for delta in self._deltas),
            token_ids=token_ids,
            finish_reason=finish_reason,
            logprobs=logprobs or None,
            usage=Usage(self._num_prompt_tokens, len(token_ids)),
            prompt_logprobs=self._deltas[0].prompt_logprobs,
        )
