"""Responses of `/v1/chat/completions`."""

from collections.abc import Sequence

import msgspec

from llm.inference import Collector, Delta, FinishReason, GenerationOutput, Prompt, TokenLogprob, Usage
from llm.serving import sse
from llm.serving.answers.base import Answer, all_choices
from llm.serving.answers.parts import chat_delta, message_tool_calls
from llm.serving.logprobs import chat_logprobs
from llm.serving.protocol.chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
)
from llm.serving.protocol.common import ChatFinishReason, GenerationRequest
from llm.serving.protocol.logprobs import ChatLogprobs
from llm.tokenization import BaseTokenizer


class ChatAnswer(Answer):
    """Builds responses of `/v1/chat/completions`."""

    id_prefix = "chatcmpl"

    def __init__(self, request: GenerationRequest, tokenizer: BaseTokenizer, prompts: Sequence[Prompt] = ()) -> None:
        super().__init__(request, tokenizer, prompts)
        setup = prompts[0].answer if prompts else None
        self._format = None if setup is None else setup.format
        self._with_calls: set[int] = set()  # the choices that have called a function

    def opening(self, index: int) -> msgspec.Struct:
        """Returns the chunk that announces the assistant role; the first one holds the prompt's ids if requested."""
        chunk = self._chunk([ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))])
        if self._frames.keys() - {index}:
            return chunk
        return msgspec.structs.replace(chunk, prompt_token_ids=self._prompt_ids(index))

    def chunk(self, index: int, text: str, finish_reason: ChatFinishReason | None = None) -> msgspec.Struct:
        """Returns a chunk that adds text; the delta is empty if there is none."""
        return self._chunk([ChatChunkChoice(index=index, delta=_delta(text), finish_reason=finish_reason)])

    def token_chunk(self, index: int, delta: Delta) -> msgspec.Struct:
        """Returns a chunk that adds text with log-probabilities and ids of its tokens."""
        logprobs = self._logprobs(delta.logprobs or ())
        choice = ChatChunkChoice(index=index, delta=_delta(delta.text), logprobs=logprobs, token_ids=self._ids(delta))
        return self._chunk([choice])

    def part_events(self, index: int, delta: Delta) -> list[bytes]:
        """Returns the framed chunks of a delta's parts; what the request asks about its tokens is in the first one."""
        parts = delta.parts or ()
        self._with_calls.update({index} if any(part.kind == "call" for part in parts) else ())
        if not (delta.logprobs or self._returns_ids):
            return [sse.event(self._part_chunk(index, chat_delta(part, self._format))) for part in parts]
        first, *others = [chat_delta(part, self._format) for part in parts] or [ChatDelta()]
        logprobs = self._logprobs(delta.logprobs or ())
        choice = ChatChunkChoice(index=index, delta=first, logprobs=logprobs, token_ids=self._ids(delta))
        return [sse.event(self._chunk([choice])), *(sse.event(self._part_chunk(index, other)) for other in others)]

    def finish_reason(self, index: int, finish_reason: FinishReason) -> ChatFinishReason:
        """Returns `tool_calls` for an answer that ended by itself after a call."""
        return _finish_reason(finish_reason, calls_tools=index in self._with_calls)

    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """Returns the chunk that holds the usage and no choice."""
        return msgspec.structs.replace(self._chunk([]), usage=usage)

    def whole(self, collector: Collector) -> msgspec.Struct:
        """Returns the response with one message per choice."""
        outputs = collector.outputs()
        choices = [
            ChatChoice(
                index=index,
                message=self._message(choice),
                finish_reason=_finish_reason(choice.finish_reason, calls_tools=bool(choice.tool_calls)),
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

    def _message(self, output: GenerationOutput) -> AssistantMessage:
        if output.reasoning is None and not output.tool_calls:
            return AssistantMessage(content=output.text)
        reasoning = output.reasoning or msgspec.UNSET
        calls = message_tool_calls(output, self._format) or msgspec.UNSET
        return AssistantMessage(
            content=output.text or None, reasoning=reasoning, reasoning_content=reasoning, tool_calls=calls
        )

    def _part_chunk(self, index: int, delta: ChatDelta) -> ChatCompletionChunk:
        return self._chunk([ChatChunkChoice(index=index, delta=delta)])

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        return chat_logprobs(entries, self._tokenizer) if entries else None

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=self._no_usage
        )


def _delta(text: str) -> ChatDelta:
    return ChatDelta(content=text) if text else ChatDelta()


def _finish_reason(finish_reason: FinishReason, *, calls_tools: bool) -> ChatFinishReason:
    return "tool_calls" if calls_tools and finish_reason != "length" else finish_reason
