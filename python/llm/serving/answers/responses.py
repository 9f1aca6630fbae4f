"""Responses of `/v1/responses`."""

import time
import uuid
from collections.abc import Iterator, Sequence

import msgspec

from llm.inference import TokenLogprob, Usage
from llm.inference.parts import PartKind
from llm.serving.answers.blocks import Block, BlockAnswer, Ending
from llm.serving.errors import APIError
from llm.serving.logprobs import chat_logprobs
from llm.serving.protocol.logprobs import ContentLogprob
from llm.serving.protocol.response_items import (
    FunctionCall,
    ItemStatus,
    NamespaceTool,
    OutputItem,
    OutputMessage,
    OutputText,
    Reasoning,
    ReasoningConfig,
    ReasoningText,
    TextConfig,
    TextFormat,
)
from llm.serving.protocol.responses import (
    ArgumentsDelta,
    ArgumentsDone,
    CachedTokens,
    ContentPartAdded,
    ContentPartDone,
    ErrorCode,
    IncompleteDetails,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    ReasoningTextDelta,
    ReasoningTextDone,
    Response,
    ResponseCompleted,
    ResponseCreated,
    ResponseError,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponsesRequest,
    ResponseStatus,
    ResponseUsage,
)
from llm.serving.translation.responses import full_name, item_id
from llm.tokenization import BaseTokenizer

_PREFIXES = {"text": "msg", "reasoning": "rs", "call": "fc"}


def new_response_id() -> str:
    """Returns a new id of a response, which nobody can guess."""
    return f"resp_{uuid.uuid4().hex}"


class ResponseAnswer(BlockAnswer):
    """Builds one response of `/v1/responses`; it can be read at any time."""

    def __init__(self, request: ResponsesRequest, response_id: str, tokenizer: BaseTokenizer) -> None:
        super().__init__()
        self.id = response_id
        self._tokenizer = tokenizer
        self._num_events = 0
        self._status: ResponseStatus = "queued" if request.background else "in_progress"
        self._error: ResponseError | None = None
        self._ended_at: int | None = None
        self._pending: list[ContentLogprob] = []
        self._logprobs: dict[int, list[ContentLogprob]] = {}
        self._start = _blank(request, response_id)
        self._namespaces = {
            full_name(tool.name, each.name): (tool.name, each.name)
            for tool in request.tools or ()
            if isinstance(tool, NamespaceTool)
            for each in tool.tools
        }

    def new_id(self, kind: PartKind) -> str:
        """Returns the id of the next item."""
        return item_id(_PREFIXES[kind], self.id, str(len(self.blocks)))

    def note_logprobs(self, entries: Sequence[TokenLogprob]) -> None:
        """Keeps log-probabilities for the text that comes next."""
        self._pending += chat_logprobs(entries, self._tokenizer).content

    def started(self, usage: Usage) -> Iterator[msgspec.Struct]:  # noqa: ARG002 - told at the end
        """Yields the response without output, as created and as in progress."""
        yield ResponseCreated(sequence_number=self._number(), response=self.whole())
        self._status = "in_progress"
        yield ResponseInProgress(sequence_number=self._number(), response=self.whole())

    def opened(self, block: Block) -> Iterator[msgspec.Struct]:
        """Yields the item without content, and its part."""
        item = self._item(block, "in_progress", is_empty=True)
        yield OutputItemAdded(sequence_number=self._number(), output_index=block.index, item=item)
        if block.kind != "call":
            yield ContentPartAdded(
                sequence_number=self._number(), item_id=block.id, output_index=block.index, part=self._part(block, "")
            )

    def grown(self, block: Block, text: str) -> Iterator[msgspec.Struct]:
        """Yields the text, the reasoning, or the piece of the arguments."""
        number, own_id, index = self._number(), block.id, block.index
        logprobs, self._pending = self._pending, []
        match block.kind:
            case "text":
                self._logprobs.setdefault(index, []).extend(logprobs)
                yield OutputTextDelta(
                    sequence_number=number, item_id=own_id, output_index=index, delta=text, logprobs=logprobs
                )
            case "reasoning":
                yield ReasoningTextDelta(sequence_number=number, item_id=own_id, output_index=index, delta=text)
            case _:
                yield ArgumentsDelta(sequence_number=number, item_id=own_id, output_index=index, delta=text)

    def closed(self, block: Block) -> Iterator[msgspec.Struct]:
        """Yields the whole text, the part and the item."""
        text, own_id, index = block.text, block.id, block.index
        if block.kind == "call":
            yield ArgumentsDone(
                sequence_number=self._number(), item_id=own_id, output_index=index, name=block.name, arguments=text
            )
        else:
            yield self._text_done(block, text)
            yield ContentPartDone(
                sequence_number=self._number(), item_id=own_id, output_index=index, part=self._part(block, text)
            )
        # Within the answer, an item closes because the next one begins.
        item = self._item(block, "completed" if self.ending is None else self._item_status(block))
        yield OutputItemDone(sequence_number=self._number(), output_index=index, item=item)

    def ended(self, ending: Ending) -> Iterator[msgspec.Struct]:
        """Yields the last event, with the whole response."""
        kind = ResponseIncomplete if ending.finish_reason == "length" else ResponseCompleted
        self._end("incomplete" if ending.finish_reason == "length" else "completed")
        yield kind(sequence_number=self._number(), response=self.whole())

    def failed(self, error: APIError) -> Iterator[msgspec.Struct]:
        """Yields the last event of a response that an error ended."""
        self._error = ResponseError(code=_error_code(error.status), message=str(error))
        if self._num_events == 0:
            yield from self.started(Usage.of(0, 0))
        self._end("failed")
        yield ResponseFailed(sequence_number=self._number(), response=self.whole())

    def cancel(self) -> None:
        """Ends the response as cancelled."""
        self._end("cancelled")

    def whole(self) -> Response:
        """Returns the response as it is now."""
        is_short = self._status == "incomplete"
        return msgspec.structs.replace(
            self._start,
            status=self._status,
            output=[self._item(block, self._item_status(block)) for block in self.blocks],
            completed_at=self._ended_at if self._status == "completed" else None,
            error=self._error,
            incomplete_details=IncompleteDetails() if is_short else None,
            usage=None if self.ending is None else _usage(self.ending.usage),
        )

    def _end(self, status: ResponseStatus) -> None:
        self._status = status
        self._ended_at = int(time.time())

    def _number(self) -> int:
        self._num_events += 1
        return self._num_events - 1

    def _item_status(self, block: Block) -> ItemStatus:
        """Returns whether an item is whole; the last one isn't if a limit, an error or the client ended the answer."""
        if block.index < len(self.blocks) - 1:
            return "completed"
        if self.ending is not None:
            return "incomplete" if self.ending.finish_reason == "length" else "completed"
        return "in_progress" if self._ended_at is None else "incomplete"

    def _text_done(self, block: Block, text: str) -> msgspec.Struct:
        number = self._number()
        if block.kind == "reasoning":
            return ReasoningTextDone(sequence_number=number, item_id=block.id, output_index=block.index, text=text)
        logprobs = self._logprobs.get(block.index, [])
        return OutputTextDone(
            sequence_number=number, item_id=block.id, output_index=block.index, text=text, logprobs=logprobs
        )

    def _part(self, block: Block, text: str) -> OutputText | ReasoningText:
        if block.kind == "reasoning":
            return ReasoningText(text=text)
        return OutputText(text=text, logprobs=self._logprobs.get(block.index, []))

    def _item(self, block: Block, status: ItemStatus, *, is_empty: bool = False) -> OutputItem:
        text = "" if is_empty else block.text
        match block.kind:
            case "text":
                part = OutputText(text=text, logprobs=self._logprobs.get(block.index, []))
                return OutputMessage(id=block.id, status=status, content=[] if is_empty else [part])
            case "reasoning":
                return Reasoning(id=block.id, content=[] if is_empty else [ReasoningText(text=text)], status=status)
            case _:
                namespace, name = self._namespaces.get(block.name, (msgspec.UNSET, block.name))
                call_id = item_id("call", self.id, str(block.index))
                return FunctionCall(
                    id=block.id, call_id=call_id, name=name, namespace=namespace, arguments=text, status=status
                )


def _blank(request: ResponsesRequest, response_id: str) -> Response:
    """Returns the response before its answer: the request's parameters, with their defaults."""
    shared = set(Response.__struct_fields__) & set(request.__struct_fields__)
    given = {name: value for name in shared if (value := getattr(request, name)) is not None}
    text = request.text or TextConfig()
    return Response(
        **{
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "reasoning": ReasoningConfig(),
            **given,
            "text": msgspec.structs.replace(text, format=text.format or TextFormat()),
        },
        id=response_id,
        created_at=int(time.time()),
        status="in_progress",
        output=[],
    )


def _error_code(status: int) -> ErrorCode:
    if status == 429:
        return "rate_limit_exceeded"
    return "server_error" if status >= 500 else "invalid_prompt"


def _usage(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_tokens_details=CachedTokens(cached_tokens=usage.prompt_tokens_details.cached_tokens),
        output_tokens_details=usage.completion_tokens_details,
    )
