"""Responses of `/v1/messages`."""

import base64
import hashlib
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from llm.errors import InternalError
from llm.inference import TokenLogprob, Usage
from llm.inference.parts import PartKind
from llm.serving.answers.blocks import Block, BlockAnswer, Ending
from llm.serving.protocol.messages import (
    AdaptiveThinking,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    ContextManagement,
    EnabledThinking,
    InputJsonDelta,
    Message,
    MessageDelta,
    MessageEnding,
    MessagesRequest,
    MessageStart,
    MessageStop,
    MessageUsage,
    OutputBlock,
    Ping,
    SignatureDelta,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
)


class MessageAnswer(BlockAnswer):
    """Builds one response of `/v1/messages`."""

    def __init__(self, request: MessagesRequest) -> None:
        super().__init__()
        self._id = f"msg_{uuid.uuid4().hex}"
        self._model = request.model
        thinking = request.thinking
        self._hides_thinking = (
            isinstance(thinking, EnabledThinking | AdaptiveThinking) and thinking.display == "omitted"
        )
        self._context: ContextManagement | UnsetType = (
            UNSET if request.context_management is None else ContextManagement()
        )

    def new_id(self, kind: PartKind) -> str:
        """Returns an id in the form of Anthropic's ids of tool calls, the only blocks with an id."""
        return f"toolu_{uuid.uuid4().hex[:24]}" if kind == "call" else ""

    def note_logprobs(self, entries: Sequence[TokenLogprob]) -> None:
        """Does nothing: the API has no place for log-probabilities."""

    def started(self, usage: Usage) -> Iterator[msgspec.Struct]:
        """Yields the message without content, and a ping as Anthropic's API does."""
        begun = msgspec.structs.replace(_usage(usage), output_tokens=0)
        yield MessageStart(message=Message(id=self._id, model=self._model, content=[], usage=begun))
        yield from self.pinged()

    def pinged(self) -> Iterator[msgspec.Struct]:
        """Yields a ping."""
        yield Ping()

    def opened(self, block: Block) -> Iterator[msgspec.Struct]:
        """Yields the block without content."""
        yield ContentBlockStart(index=block.index, content_block=self._empty(block))

    def grown(self, block: Block, text: str) -> Iterator[msgspec.Struct]:
        """Yields the text, the reasoning unless the request hides it, or the piece of the arguments."""
        match block.kind:
            case "text":
                yield ContentBlockDelta(index=block.index, delta=TextDelta(text=text))
            case "reasoning":
                if not self._hides_thinking:
                    yield ContentBlockDelta(index=block.index, delta=ThinkingDelta(thinking=text))
            case _:
                yield ContentBlockDelta(index=block.index, delta=InputJsonDelta(partial_json=text))

    def closed(self, block: Block) -> Iterator[msgspec.Struct]:
        """Yields the signature of a thinking block and the event that closes a block."""
        if block.kind == "reasoning":
            yield ContentBlockDelta(index=block.index, delta=SignatureDelta(signature=_signature(block)))
        yield ContentBlockStop(index=block.index)

    def ended(self, ending: Ending) -> Iterator[msgspec.Struct]:
        """Yields the reason with the usage, and the last event."""
        reason = MessageEnding(stop_reason=self._stop_reason(ending), stop_sequence=ending.stop_string)
        yield MessageDelta(delta=reason, usage=_usage(ending.usage), context_management=self._context)
        yield MessageStop()

    def whole(self) -> Message:
        """Returns the message."""
        if self.ending is None:
            raise InternalError("a message was asked for before it ended; please report it")
        return Message(
            id=self._id,
            model=self._model,
            content=[self._output(block) for block in self.blocks],
            usage=_usage(self.ending.usage),
            stop_reason=self._stop_reason(self.ending),
            stop_sequence=self.ending.stop_string,
            context_management=self._context,
        )

    def _stop_reason(self, ending: Ending) -> StopReason:
        if ending.finish_reason == "length":
            return "model_context_window_exceeded" if ending.is_full else "max_tokens"
        if ending.stop_string is not None:
            return "stop_sequence"
        return "tool_use" if self.calls_tools else "end_turn"

    def _empty(self, block: Block) -> OutputBlock:
        match block.kind:
            case "text":
                return TextBlock(text="")
            case "reasoning":
                return ThinkingBlock(thinking="")
            case _:
                return ToolUseBlock(id=block.id, name=block.name, input={})

    def _output(self, block: Block) -> OutputBlock:
        match block.kind:
            case "text":
                return TextBlock(text=block.text)
            case "reasoning":
                return ThinkingBlock(thinking="" if self._hides_thinking else block.text, signature=_signature(block))
            case _:
                return ToolUseBlock(id=block.id, name=block.name, input=_arguments(block.text))


def _usage(usage: Usage) -> MessageUsage:
    cached = usage.prompt_tokens_details.cached_tokens
    return MessageUsage(
        input_tokens=usage.prompt_tokens - cached, output_tokens=usage.completion_tokens, cache_read_input_tokens=cached
    )


def _signature(block: Block) -> str:
    """Returns a digest of the reasoning, because some clients drop a block whose signature is empty."""
    return base64.b64encode(hashlib.sha256(block.text.encode()).digest()).decode()


def _arguments(text: str) -> dict[str, Any]:
    """Returns the arguments of a call; empty if the answer ended within them."""
    try:
        arguments = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError:
        return {}
    return arguments if isinstance(arguments, dict) else {}
