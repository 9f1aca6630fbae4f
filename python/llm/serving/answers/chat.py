"""Responses of `/v1/chat/completions`."""

from collections.abc import Sequence

import msgspec

from llm.inference import Collector, FinishReason, TokenLogprob, Usage
from llm.serving.answers.base import Answer, all_choices
from llm.serving.logprobs import chat_logprobs
from llm.serving.protocol.chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
)
from llm.serving.protocol.common import UsageField
from llm.serving.protocol.logprobs import ChatLogprobs


class ChatAnswer(Answer):
    """Builds responses of `/v1/chat/completions`."""

    id_prefix = "chatcmpl"

    def opening(self, index: int) -> msgspec.Struct:
        """Returns the chunk that announces the assistant role."""
        return self._chunk([self._choice(index, ChatDelta(role="assistant", content=""))], self._no_usage)

    def chunk(
        self,
        index: int,
        text: str,
        finish_reason: FinishReason | None = None,
        logprobs: Sequence[TokenLogprob] | None = None,
    ) -> msgspec.Struct:
        """Returns a chunk that adds text; the delta is empty if there is none."""
        delta = ChatDelta(content=text) if text else ChatDelta()
        return self._chunk([self._choice(index, delta, finish_reason, logprobs)], self._no_usage)

    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """Returns the chunk that holds the usage and no choice."""
        return self._chunk([], usage)

    def whole(self, collector: Collector) -> msgspec.Struct:
        """Returns the response with one message per choice."""
        outputs = collector.outputs()
        choices = [
            ChatChoice(
                index=index,
                message=AssistantMessage(content=choice.text),
                finish_reason=choice.finish_reason,
                logprobs=self._logprobs(choice.logprobs or ()),
            )
            for index, choice in enumerate(all_choices(outputs))
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
