"""Outputs of the engine: deltas while a request runs, and whole answers at its end."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Literal

import msgspec

from llm.errors import InternalError
from llm.inference.parts import Part, ToolCall, joined_text, tool_calls
from llm.inference.prompt import Prompt

FinishReason = Literal["stop", "length"]


# `gc=False`: neither struct can be part of a cycle, and a stream makes one of each per token.
class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """The log-probability of one token, and of the likeliest tokens at its position.

    Attributes:
        token_id: The sampled token, or the prompt's.
        logprob: Natural logarithm of its probability, before bias, penalties, temperature and filters.
        top: `(token id, logprob)` of the likeliest tokens, best first.
        rank: Rank of the token among all tokens; 1 is the likeliest.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int = 0


class Delta(msgspec.Struct, frozen=True, gc=False):
    """The text and tokens that one step added to one answer.

    Attributes:
        text: New text that is final; empty while a character or a possible stop string is incomplete.
        token_ids: Tokens that the step sampled.
        finish_reason: Why the answer ended; `None` while it goes on.
        logprobs: One entry per token, if requested.
        prompt_logprobs: In the first delta of an answer, one entry per requested prompt token; the first has none.
        stop_index: Index in `SamplingParams.stop` of the text that ended the answer, if one did.
        cached_tokens: In the first delta of an answer, the number of prompt tokens that came from the prefix cache.
        parts: The reasoning, text and calls that the delta completes; None if the answer is not split into parts.
        reasoning_tokens: Number of its tokens that belong to the reasoning.
        scheduled_at: In the first delta of a request, when its first step began, by `time.perf_counter`.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    stop_index: int | None = None
    cached_tokens: int = 0
    parts: tuple[Part, ...] | None = None
    reasoning_tokens: int = 0
    scheduled_at: float | None = None


# The index of an answer among all answers of a request, and the delta that one step added to it.
ChoiceDelta = tuple[int, Delta]


class PromptTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the prompt's tokens that the prefix cache held."""

    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the new tokens that the model thought with before its answer."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Number of tokens that a request used; an end token counts, although it has no text."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()

    @classmethod
    def of(
        cls, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0, reasoning_tokens: int = 0
    ) -> "Usage":
        """Returns the usage with its total."""
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=reasoning_tokens),
        )


class GenerationOutput(msgspec.Struct, frozen=True):
    """A complete answer.

    Attributes:
        text: Text without special tokens and stop string, unless the sampling parameters ask for them.
        token_ids: Tokens of the answer, the end token included.
        finish_reason: `stop` (end token or stop string) or `length`.
        logprobs: One entry per token, if requested.
        usage: Tokens of this answer and its prompt.
        others: With `n` above 1, the answers after the first.
        prompt_logprobs: One entry per requested prompt token; the first token has none.
        stop_index: Index in `SamplingParams.stop` of the text that ended the answer, if one did.
        reasoning: The reasoning before the answer, which `text` leaves out; None if there is none.
        tool_calls: The calls of functions, which `text` leaves out.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None
    usage: Usage
    others: tuple["GenerationOutput", ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    stop_index: int | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def choices(self) -> tuple["GenerationOutput", ...]:
        """Returns all `n` answers to the prompt, starting with this one."""
        return (self, *self.others)


class Collector:
    """Joins deltas into complete answers to several prompts.

    Answers are numbered across prompts: first the `n` answers to the first prompt, then those to the second.
    """

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = prompts
        self._deltas: list[list[Delta]] = [[] for prompt in prompts for _ in range(prompt.params.n)]

    def add(self, deltas: Iterable[ChoiceDelta]) -> None:
        """Adds the next deltas, each with the index of its answer."""
        for choice, delta in deltas:
            self._deltas[choice].append(delta)

    @property
    def has_started(self) -> bool:
        """Returns whether any delta has arrived."""
        return any(self._deltas)

    @property
    def usage(self) -> Usage:
        """Returns the usage so far, with each prompt counted once; prompts count only after the first delta.

        Only this usage counts the tokens from the prefix cache; that of the outputs doesn't.
        """
        prompt_tokens = sum(len(prompt.token_ids) for prompt in self._prompts) if self.has_started else 0
        completion_tokens = sum(len(delta.token_ids) for deltas in self._deltas for delta in deltas)
        answers = iter(self._deltas)
        of_prompts = [list(islice(answers, prompt.params.n)) for prompt in self._prompts]
        cached_tokens = sum(max(map(_cached_tokens, choices), default=0) for choices in of_prompts)
        reasoning_tokens = sum(map(_reasoning_tokens, self._deltas))
        return Usage.of(prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens)

    @property
    def finish_reasons(self) -> list[FinishReason | None]:
        """Returns why each answer ended; None for an answer that has not."""
        return [deltas[-1].finish_reason if deltas else None for deltas in self._deltas]

    def outputs(self) -> list[GenerationOutput]:
        """Returns one output per prompt, with all answers to the prompt.

        Raises:
            InternalError: An answer has not ended.
        """
        found = []
        answers = iter(self._deltas)
        for prompt in self._prompts:
            first, *others = [_joined(prompt, deltas) for deltas in islice(answers, prompt.params.n)]
            found.append(msgspec.structs.replace(first, others=tuple(others)))
        return found


def _cached_tokens(deltas: list[Delta]) -> int:
    return deltas[0].cached_tokens if deltas else 0


def _reasoning_tokens(deltas: list[Delta]) -> int:
    return sum(delta.reasoning_tokens for delta in deltas)


def _joined(prompt: Prompt, deltas: list[Delta]) -> GenerationOutput:
    finish_reason = deltas[-1].finish_reason if deltas else None
    if finish_reason is None:
        raise InternalError("an answer ended without a finish reason; please report it")
    token_ids = tuple(token_id for delta in deltas for token_id in delta.token_ids)
    parts = None if deltas[0].parts is None else [part for delta in deltas for part in delta.parts or ()]
    return GenerationOutput(
        text="".join(delta.text for delta in deltas) if parts is None else joined_text(parts, "text"),
        token_ids=token_ids,
        finish_reason=finish_reason,
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs or ()) or None,
        # Without cached tokens: equal requests have equal outputs, whatever ran before them.
        usage=Usage.of(len(prompt.token_ids), len(token_ids), _cached_tokens(deltas), _reasoning_tokens(deltas)),
        prompt_logprobs=deltas[0].prompt_logprobs,
        stop_index=deltas[-1].stop_index,
        reasoning=joined_text(parts or (), "reasoning") or None,
        tool_calls=tool_calls(parts or ()),
    )
