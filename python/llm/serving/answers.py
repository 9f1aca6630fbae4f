"""How each generating endpoint words its answer, in one piece or as the events of a stream."""

import abc
import time
import uuid
from collections.abc import Iterable, Sequence

import msgspec

from llm.inference import ChoiceDelta, Collector, FinishReason, GenerationOutput, TokenLogprob, Usage
from llm.serving import sse
from llm.serving.logprobs import chat_logprobs, completion_logprobs, prompt_logprobs
from llm.serving.protocol import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    GenerationRequest,
    PromptLogprobs,
    UsageField,
    encoder,
)
from llm.tokenization import BaseTokenizer

# Stands for the text of a chunk while its frame is made.
_TEXT = "\0text\0"


class Answer(abc.ABC):
    """One answer, whose id, time and model are the same in every piece."""

    id_prefix: str

    def __init__(self, request: GenerationRequest, tokenizer: BaseTokenizer) -> None:
        self._tokenizer = tokenizer
        self._num_logprobs = request.num_logprobs
        self._id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = request.model
        # Once usage is asked for, every chunk but the last says `"usage": null`.
        self._no_usage: UsageField = None if request.include_usage else msgspec.UNSET
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    def events(self, deltas: Iterable[ChoiceDelta]) -> bytes:
        """Frames deltas as events: the opening of a choice, its text with its tokens, and why it ended."""
        parts: list[bytes] = []
        for index, delta in deltas:
            frame = self._frames.get(index)
            if frame is None:
                frame = self._frames[index] = self._frame(index)
                opening = self.opening(index)
                parts += () if opening is None else (sse.event(opening),)
            if delta.logprobs:
                parts.append(sse.event(self.chunk(index, delta.text, logprobs=delta.logprobs)))
            elif delta.text:
                parts += (frame[0], encoder.encode(delta.text), frame[1])
            if delta.finish_reason is not None:
                parts.append(sse.event(self.chunk(index, "", delta.finish_reason)))
        return b"".join(parts)

    def last_event(self, usage: Usage) -> bytes:
        """Frames the usage if the request asked for it, else nothing."""
        return b"" if self._no_usage is msgspec.UNSET else sse.event(self.usage_chunk(usage))

    def _frame(self, index: int) -> tuple[bytes, bytes]:
        """The bytes before and after the text of a choice's events, which differ in nothing else.

        Joining three pieces takes a quarter of the time of encoding a chunk anew.
        """
        before, after = sse.event(self.chunk(index, _TEXT)).rsplit(encoder.encode(_TEXT), 1)
        return before, after

    @abc.abstractmethod
    def opening(self, index: int) -> msgspec.Struct | None:
        """The chunk before the first text of a choice, if the endpoint has one."""

    @abc.abstractmethod
    def chunk(
        self,
        index: int,
        text: str,
        finish_reason: FinishReason | None = None,
        logprobs: Sequence[TokenLogprob] | None = None,
    ) -> msgspec.Struct:
        """The chunk that adds text and its tokens to a choice, or says why the choice ended."""

    @abc.abstractmethod
    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """The last chunk, which holds the usage and no choice."""

    @abc.abstractmethod
    def whole(self, collector: Collector) -> msgspec.Struct:
        """The answer in one piece."""

    def _prompt_logprobs(self, output: GenerationOutput) -> PromptLogprobs:
        entries = output.prompt_logprobs
        return msgspec.UNSET if entries is None else prompt_logprobs(entries, self._tokenizer)


class ChatAnswer(Answer):
    """The shapes of `/v1/chat/completions`."""

    id_prefix = "chatcmpl"

    def opening(self, index: int) -> msgspec.Struct:
        """Announces the role."""
        return self._chunk([self._choice(index, ChatDelta(role="assistant", content=""))], self._no_usage)

    def chunk(
        self,
        index: int,
        text: str,
        finish_reason: FinishReason | None = None,
        logprobs: Sequence[TokenLogprob] | None = None,
    ) -> msgspec.Struct:
        """Adds text; a delta without any is empty."""
        delta = ChatDelta(content=text) if text else ChatDelta()
        return self._chunk([self._choice(index, delta, finish_reason, logprobs)], self._no_usage)

    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """Holds no choice."""
        return self._chunk([], usage)

    def whole(self, collector: Collector) -> msgspec.Struct:
        """One message per choice."""
        outputs = collector.outputs()
        choices = [
            ChatChoice(
                index=index,
                message=AssistantMessage(content=choice.text),
                finish_reason=choice.finish_reason,
                logprobs=self._logprobs(choice.logprobs or ()),
            )
            for index, choice in enumerate(_all_choices(outputs))
        ]
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=collector.usage,
            prompt_logprobs=self._prompt_logprobs(outputs[0]),
        )

    def _choice(
        self,
        index: int,
        delta: ChatDelta,
        finish_reason: FinishReason | None = None,
        logprobs: Sequence[TokenLogprob] | None = None,
    ) -> ChatChunkChoice:
        return ChatChunkChoice(
            index=index, delta=delta, finish_reason=finish_reason, logprobs=self._logprobs(logprobs or ())
        )

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        return chat_logprobs(entries, self._tokenizer) if entries else None

    def _chunk(self, choices: list[ChatChunkChoice], usage: UsageField) -> ChatCompletionChunk:
        return ChatCompletionChunk(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)


class TextAnswer(Answer):
    """The shapes of `/v1/completions`, where chunk and answer are one type."""

    id_prefix = "cmpl"

    def __init__(self, request: GenerationRequest, tokenizer: BaseTokenizer) -> None:
        super().__init__(request, tokenizer)
        self._offsets: dict[int, int] = {}  # where each choice's next token begins

    def opening(self, index: int) -> None:  # noqa: ARG002 - plain text has no role to announce
        """Plain text starts without one."""
        return

    def chunk(
        self,
        index: int,
        text: str,
        finish_reason: FinishReason | None = None,
        logprobs: Sequence[TokenLogprob] | None = None,
    ) -> msgspec.Struct:
        """Adds text."""
        columns = self._logprobs(logprobs or (), self._offsets.get(index, 0))
        if columns is not None:
            self._offsets[index] = columns.text_offset[-1] + len(columns.tokens[-1])
        choice = CompletionChoice(index=index, text=text, finish_reason=finish_reason, logprobs=columns)
        return self._completion([choice], self._no_usage)

    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """Holds no choice."""
        return self._completion([], usage)

    def whole(self, collector: Collector) -> msgspec.Struct:
        """One text per choice."""
        choices = [
            CompletionChoice(
                index=index,
                text=choice.text,
                finish_reason=choice.finish_reason,
                logprobs=self._logprobs(choice.logprobs or (), 0),
                prompt_logprobs=self._prompt_logprobs(choice),
            )
            for index, choice in enumerate(_all_choices(collector.outputs()))
        ]
        return self._completion(choices, collector.usage)

    def _logprobs(self, entries: Sequence[TokenLogprob], start: int) -> CompletionLogprobs | None:
        if not entries:
            return None
        return completion_logprobs(entries, self._tokenizer, self._num_logprobs or 0, start)

    def _completion(self, choices: list[CompletionChoice], usage: UsageField) -> Completion:
        return Completion(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)


def _all_choices(outputs: Iterable[GenerationOutput]) -> list[GenerationOutput]:
    return [choice for output in outputs for choice in output.choices]
