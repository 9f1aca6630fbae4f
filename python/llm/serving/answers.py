"""How each generating endpoint words its answer, in one piece or as the chunks of a stream."""

import abc
import time
import uuid

import msgspec

from llm.serving.generation import Tally
from llm.serving.protocol import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    Completion,
    CompletionChoice,
    FinishReason,
    GenerationRequest,
    Usage,
    UsageField,
)


class Answer(abc.ABC):
    """One answer: its id, time and model are the same in every piece."""

    id_prefix: str

    def __init__(self, request: GenerationRequest) -> None:
        self._id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = request.model
        # Once usage is asked for, every chunk but the last says `"usage": null`.
        self._no_usage: UsageField = None if request.include_usage else msgspec.UNSET

    @abc.abstractmethod
    def opening(self, index: int) -> msgspec.Struct | None:
        """The chunk that comes before a choice's first text, where there is one."""

    @abc.abstractmethod
    def chunk(self, index: int, text: str, finish_reason: FinishReason | None = None) -> msgspec.Struct:
        """The chunk that adds text to a choice, or says why it ended."""

    @abc.abstractmethod
    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """The last chunk: the usage, and no choice."""

    @abc.abstractmethod
    def whole(self, tally: Tally) -> msgspec.Struct:
        """The answer in one piece."""


class ChatAnswer(Answer):
    """The shapes of `/v1/chat/completions`."""

    id_prefix = "chatcmpl"

    def opening(self, index: int) -> msgspec.Struct:
        """Announces the role."""
        return self._chunk([self._choice(index, ChatDelta(role="assistant", content=""))], self._no_usage)

    def chunk(self, index: int, text: str, finish_reason: FinishReason | None = None) -> msgspec.Struct:
        """Adds text; a delta without any is empty."""
        delta = ChatDelta(content=text) if text else ChatDelta()
        return self._chunk([self._choice(index, delta, finish_reason)], self._no_usage)

    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """Holds no choice."""
        return self._chunk([], usage)

    def whole(self, tally: Tally) -> msgspec.Struct:
        """A message a choice."""
        choices = [
            ChatChoice(index=index, message=AssistantMessage(content=text), finish_reason=finish_reason)
            for index, text, finish_reason in tally.choices()
        ]
        return ChatCompletion(id=self._id, created=self._created, model=self._model, choices=choices, usage=tally.usage)

    def _choice(self, index: int, delta: ChatDelta, finish_reason: FinishReason | None = None) -> ChatChunkChoice:
        return ChatChunkChoice(index=index, delta=delta, finish_reason=finish_reason)

    def _chunk(self, choices: list[ChatChunkChoice], usage: UsageField) -> ChatCompletionChunk:
        return ChatCompletionChunk(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)


class TextAnswer(Answer):
    """The shapes of `/v1/completions`, where chunk and answer are one type."""

    id_prefix = "cmpl"

    def opening(self, index: int) -> None:  # noqa: ARG002 - plain text has no role to announce
        """Plain text starts without one."""
        return

    def chunk(self, index: int, text: str, finish_reason: FinishReason | None = None) -> msgspec.Struct:
        """Adds text."""
        return self._completion([CompletionChoice(index=index, text=text, finish_reason=finish_reason)], self._no_usage)

    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """Holds no choice."""
        return self._completion([], usage)

    def whole(self, tally: Tally) -> msgspec.Struct:
        """A text a prompt."""
        choices = [
            CompletionChoice(index=index, text=text, finish_reason=finish_reason)
            for index, text, finish_reason in tally.choices()
        ]
        return self._completion(choices, tally.usage)

    def _completion(self, choices: list[CompletionChoice], usage: UsageField) -> Completion:
        return Completion(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)
