"""How each generating endpoint words its answer, in one piece or as the chunks of a stream."""

import abc
import time
import uuid
from collections.abc import Sequence

import msgspec

from llm.inference import TokenLogprob
from llm.serving.generation import Tally
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
    FinishReason,
    GenerationRequest,
    PromptLogprobs,
    Usage,
    UsageField,
)
from llm.tokenization import BaseTokenizer


class Answer(abc.ABC):
    """One answer: its id, time and model are the same in every piece."""

    id_prefix: str

    def __init__(self, request: GenerationRequest, tokenizer: BaseTokenizer) -> None:
        self._tokenizer = tokenizer
        self._num_logprobs = request.num_logprobs
        self._id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = request.model
        # Once usage is asked for, every chunk but the last says `"usage": null`.
        self._no_usage: UsageField = None if request.include_usage else msgspec.UNSET

    @abc.abstractmethod
    def opening(self, index: int) -> msgspec.Struct | None:
        """The chunk that comes before a choice's first text, where there is one."""

    @abc.abstractmethod
    def chunk(
        self,
        index: int,
        text: str,
        finish_reason: FinishReason | None = None,
        logprobs: Sequence[TokenLogprob] | None = None,
    ) -> msgspec.Struct:
        """The chunk that adds text and its tokens to a choice, or says why it ended."""

    @abc.abstractmethod
    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """The last chunk: the usage, and no choice."""

    @abc.abstractmethod
    def whole(self, tally: Tally) -> msgspec.Struct:
        """The answer in one piece."""

    def _prompt_logprobs(self, tally: Tally, index: int) -> PromptLogprobs:
        entries = tally.prompt_logprobs(index)
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

    def whole(self, tally: Tally) -> msgspec.Struct:
        """A message a choice."""
        choices = [
            ChatChoice(
                index=index,
                message=AssistantMessage(content=text),
                finish_reason=finish_reason,
                logprobs=self._logprobs(tally.logprobs(index)),
            )
            for index, text, finish_reason in tally.choices()
        ]
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=tally.usage,
            prompt_logprobs=self._prompt_logprobs(tally, 0),
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

    def whole(self, tally: Tally) -> msgspec.Struct:
        """A text a prompt."""
        choices = [
            CompletionChoice(
                index=index,
                text=text,
                finish_reason=finish_reason,
                logprobs=self._logprobs(tally.logprobs(index), 0),
                prompt_logprobs=self._prompt_logprobs(tally, index),
            )
            for index, text, finish_reason in tally.choices()
        ]
        return self._completion(choices, tally.usage)

    def _logprobs(self, entries: Sequence[TokenLogprob], start: int) -> CompletionLogprobs | None:
        if not entries:
            return None
        return completion_logprobs(entries, self._tokenizer, self._num_logprobs or 0, start)

    def _completion(self, choices: list[CompletionChoice], usage: UsageField) -> Completion:
        return Completion(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)
