"""Responses of `/v1/chat/completions`."""

from collections.abc import Sequence

import msgspec

from llm.inference import Collector, Delta, FinishReason, TokenLogprob, Usage
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
from llm.serving.protocol.logprobs import ChatLogprobs


class ChatAnswer(Answer):
    """Builds responses of `/v1/chat/completions`."""

    id_prefix = "chatcmpl"

    def opening(self, index: int) -> msgspec.Struct:
        """Returns the chunk that announces the assistant role; the first one holds the prompt's ids if requested."""
        chunk = self._chunk([ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))])
        if self._frames.keys() - {index}:
            return chunk
        return msgspec.structs.replace(chunk, prompt_token_ids=self._prompt_ids(index))

    def chunk(self, index: int, text: str, finish_reason: FinishReason | None = None) -> msgspec.Struct:
        """Returns a chunk that adds text; the delta is empty if there is none."""
        return self._chunk([ChatChunkChoice(index=index, delta=_delta(text), finish_reason=finish_reason)])

    def token_chunk(self, index: int, delta: Delta) -> msgspec.Struct:
        """Returns a chunk that adds text with log-probabilities and ids of its tokens."""
        logprobs = self._logprobs(delta.logprobs or ())
        choice = ChatChunkChoice(index=index, delta=_delta(delta.text), logprobs=logprobs, token_ids=self._ids(delta))
        return self._chunk([choice])

    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """Returns the chunk that holds the usage and no choice."""
        return msgspec.structs.replace(self._chunk([]), usage=usage)

    def whole(self, collector: Collector) -> msgspec.Struct:
        """Returns the response with one message per choice."""
        outputs = collector.outputs()
        choices = [
            ChatChoice(
                index=index,
                message=AssistantMessage(content=choice.text),
                finish_reason=choice.finish_reason,
                logprobs=self._logprobs(choice.logprobs or ()),
                token_ids=self._ids(choice),
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
            prompt_token_ids=self._prompt_ids(0),
        )

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        return chat_logprobs(entries, self._tokenizer) if entries else None

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=self._no_usage
        )


def _delta(text: str) -> ChatDelta:
    return ChatDelta(content=text) if text else ChatDelta()
