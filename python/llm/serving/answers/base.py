"""The response of a generating endpoint, whole or as the events of a stream."""

import abc
import time
import uuid
from collections.abc import Iterable, Sequence

import msgspec

from llm.errors import InternalError
from llm.inference import ChoiceDelta, Collector, Delta, FinishReason, GenerationOutput, Prompt, Usage
from llm.serving import sse
from llm.serving.logprobs import prompt_logprobs
from llm.serving.protocol.common import ChatFinishReason, GenerationRequest, TokenIdsField, UsageField, encoder
from llm.serving.protocol.logprobs import PromptLogprobs
from llm.tokenization import BaseTokenizer

# Placeholder for the text of a chunk while its frame is built.
_TEXT = "\0text\0"


class Answer(abc.ABC):
    """Builds one response; the id, time and model are the same in every chunk."""

    id_prefix: str

    def __init__(self, request: GenerationRequest, tokenizer: BaseTokenizer, prompts: Sequence[Prompt] = ()) -> None:
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._returns_ids = bool(request.return_token_ids)
        self._num_logprobs = request.num_logprobs
        self._num_prompt_logprobs: int | None = request.prompt_logprobs
        self._id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = request.model
        # If the request asks for usage, every chunk but the last holds `"usage": null`.
        self._no_usage: UsageField = None if request.include_usage else msgspec.UNSET
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    def events(self, deltas: Iterable[ChoiceDelta]) -> bytes:
        """Returns deltas framed as events: a choice's opening, its text and tokens, and its finish reason."""
        parts: list[bytes] = []
        for index, delta in deltas:
            frame = self._frames.get(index)
            if frame is None:
                frame = self._frames[index] = self._frame(index)
                opening = self.opening(index)
                parts += () if opening is None else (sse.event(opening),)
            if delta.parts is not None:
                parts += self.part_events(index, delta)
            elif delta.logprobs or self._returns_ids:
                parts.append(sse.event(self.token_chunk(index, delta)))
            elif delta.text:
                parts += (frame[0], encoder.encode(delta.text), frame[1])
            if delta.finish_reason is not None:
                finish_reason = self.finish_reason(index, delta.finish_reason)
                parts.append(sse.event(self.chunk(index, "", finish_reason)))
        return b"".join(parts)

    def last_event(self, usage: Usage) -> bytes:
        """Returns the framed usage chunk if the request asked for it, otherwise no bytes."""
        return b"" if self._no_usage is msgspec.UNSET else sse.event(self.usage_chunk(usage))

    def _frame(self, index: int) -> tuple[bytes, bytes]:
        """Returns the bytes before and after the text in a choice's events; only the text differs between events.

        Joining three byte strings is 4 times as fast as encoding a chunk again.
        """
        before, after = sse.event(self.chunk(index, _TEXT)).rsplit(encoder.encode(_TEXT), 1)
        return before, after

    @abc.abstractmethod
    def opening(self, index: int) -> msgspec.Struct | None:
        """Returns the chunk sent before a choice's first text, or None if the endpoint has no such chunk."""

    @abc.abstractmethod
    def chunk(self, index: int, text: str, finish_reason: ChatFinishReason | None = None) -> msgspec.Struct:
        """Returns the chunk that adds text to a choice, or gives the choice's finish reason."""

    @abc.abstractmethod
    def token_chunk(self, index: int, delta: Delta) -> msgspec.Struct:
        """Returns the chunk that adds text to a choice with what the request asks for about its tokens."""

    def part_events(self, index: int, delta: Delta) -> list[bytes]:
        """Returns the framed events of a delta that is split into parts; only some endpoints have such deltas.

        Raises:
            InternalError: The endpoint has no parts.
        """
        raise InternalError(f"the delta {delta!r} of choice {index} has parts; please report it")

    def finish_reason(self, index: int, finish_reason: FinishReason) -> ChatFinishReason:  # noqa: ARG002 - for subclasses
        """Returns why a choice ended, in the endpoint's words."""
        return finish_reason

    @abc.abstractmethod
    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """Returns the last chunk, which holds the usage and no choice."""

    @abc.abstractmethod
    def whole(self, collector: Collector) -> msgspec.Struct:
        """Returns the whole response of a request that isn't streamed."""

    def _ids(self, delta: Delta | GenerationOutput) -> TokenIdsField:
        return delta.token_ids if self._returns_ids else msgspec.UNSET

    def _prompt_ids(self, index: int) -> TokenIdsField:
        """Returns the token ids of the prompt that a choice answers, if requested."""
        if not self._returns_ids:
            return msgspec.UNSET
        owners = [prompt for prompt in self._prompts for _ in range(prompt.params.n)]
        return tuple(owners[index].token_ids)

    def _prompt_logprobs(self, output: GenerationOutput) -> PromptLogprobs:
        entries, num_top = output.prompt_logprobs, self._num_prompt_logprobs
        if entries is None or num_top is None:
            return msgspec.UNSET
        return prompt_logprobs(entries, self._tokenizer, output.usage.prompt_tokens, num_top)


def all_choices(outputs: Iterable[GenerationOutput]) -> list[GenerationOutput]:
    """Returns the answers to all prompts in the order of their indices."""
    return [choice for output in outputs for choice in output.choices]
