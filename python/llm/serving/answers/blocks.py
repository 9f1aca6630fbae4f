"""An answer as a row of blocks (reasoning, text, calls of tools), the form of the APIs of messages and responses.

A whole answer is what its events built, so a stream and the answer without streaming can't differ.
"""

import abc
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from llm.inference import FinishReason, TokenLogprob, Usage
from llm.inference.parts import Part, PartKind


class Block(msgspec.Struct, kw_only=True):
    """One block of an answer: its kind, the name of a called tool, and its text or arguments so far.

    Attributes:
        index: Position among the answer's blocks.
        id: Name that clients know the block by.
        kind: What the block holds.
        name: Name of the called tool.
        pieces: Its text, as it arrived.
    """

    index: int
    id: str
    kind: PartKind
    name: str = ""
    pieces: list[str] = msgspec.field(default_factory=list)

    @property
    def text(self) -> str:
        """Returns the text so far."""
        return "".join(self.pieces)


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer ended.

    Attributes:
        finish_reason: Whether the model stopped or a limit ended the answer.
        usage: Tokens of prompt and answer.
        stop_string: The stop string of the request that ended the answer.
        is_full: Whether the limit was the end of the model's context.
    """

    finish_reason: FinishReason
    usage: Usage
    stop_string: str | None = None
    is_full: bool = False


class BlockAnswer(abc.ABC):
    """Builds one answer from parts and tells each change as events."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.ending: Ending | None = None
        self._is_open = False
        self._blank = ""  # white space that becomes text only if text follows

    def add(self, parts: Iterable[Part]) -> Iterator[msgspec.Struct]:
        """Yields the events of the next parts."""
        for part in parts:
            if part.kind == "text" and not self._is_within("text"):
                self._blank += part.text
                if self._blank.isspace() or not self._blank:
                    continue
                yield from self._begin("text")
                yield from self._grow(self._blank)
                self._blank = ""
            elif part.kind == "call":
                yield from self._begin("call", part.text)
            else:
                kind = "call" if part.kind == "arguments" else part.kind
                if not self._is_within(kind):
                    yield from self._begin(kind)
                yield from self._grow(part.text)

    def finish(self, ending: Ending) -> Iterator[msgspec.Struct]:
        """Yields the events that end the answer; one of nothing but white space becomes a block of it."""
        self.ending = ending
        if not self.blocks and self._blank:
            yield from self._begin("text")
            yield from self._grow(self._blank)
        yield from self._close()
        yield from self.ended(ending)

    @property
    def calls_tools(self) -> bool:
        """Returns whether the answer holds a call of a tool."""
        return any(block.kind == "call" for block in self.blocks)

    @abc.abstractmethod
    def note_logprobs(self, entries: Sequence[TokenLogprob]) -> None:
        """Takes log-probabilities of the tokens whose text comes next."""

    @abc.abstractmethod
    def started(self, usage: Usage) -> Iterator[msgspec.Struct]:
        """Yields the events that begin an answer."""

    def pinged(self) -> Iterator[msgspec.Struct]:
        """Yields the event that only shows that the connection works; by default, the API has none."""
        yield from ()

    @abc.abstractmethod
    def ended(self, ending: Ending) -> Iterator[msgspec.Struct]:
        """Yields the events that end an answer whose blocks are closed."""

    @abc.abstractmethod
    def whole(self) -> msgspec.Struct:
        """Returns the whole answer."""

    @abc.abstractmethod
    def opened(self, block: Block) -> Iterator[msgspec.Struct]:
        """Yields the events that open a block."""

    @abc.abstractmethod
    def grown(self, block: Block, text: str) -> Iterator[msgspec.Struct]:
        """Yields the events that add to a block."""

    @abc.abstractmethod
    def closed(self, block: Block) -> Iterator[msgspec.Struct]:
        """Yields the events that close a block."""

    @abc.abstractmethod
    def new_id(self, kind: PartKind) -> str:
        """Returns the id of a new block."""

    def _is_within(self, kind: PartKind) -> bool:
        return self._is_open and self.blocks[-1].kind == kind

    def _begin(self, kind: PartKind, name: str = "") -> Iterator[msgspec.Struct]:
        self._blank = self._blank if kind == "text" else ""
        yield from self._close()
        block = Block(index=len(self.blocks), id=self.new_id(kind), kind=kind, name=name)
        self.blocks.append(block)
        self._is_open = True
        yield from self.opened(block)

    def _close(self) -> Iterator[msgspec.Struct]:
        if self._is_open:
            self._is_open = False
            yield from self.closed(self.blocks[-1])

    def _grow(self, text: str) -> Iterator[msgspec.Struct]:
        if text:
            self.blocks[-1].pieces.append(text)
            yield from self.grown(self.blocks[-1], text)
