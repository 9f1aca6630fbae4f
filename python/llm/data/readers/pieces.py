"""Documents as a stream of blocks and pieces, so that no document has to fit into memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from llm._rust import DocumentCutter, TextBlock
from llm.errors import DataError

DEFAULT_SEPARATOR = "<|endoftext|>"
# Short enough that many threads share a block, long enough that a piece costs nothing.
PIECE_BYTES = 1 << 16
# A line longer than this is cut at a space: the tokens around the cut can differ from those of the whole line.
MAX_PIECE_BYTES = 1 << 24


class Piece(NamedTuple):
    """A part of a document, and whether the document ends with it."""

    text: str
    ends: bool


@dataclass(frozen=True)
class ReadOptions:
    """How documents are found in files.

    Attributes:
        field: The field or column that holds the text, of JSON lines and Parquet.
        separator: The text between two documents, within files and fields; None if there is none.
        at_line_ends: Whether long documents may be cut at line ends; see `BaseTokenizer.cuts_at_line_ends`.
        source: The source of a mixture that sets the field itself; None: `data.field` does.
    """

    field: str = "text"
    separator: str | None = DEFAULT_SEPARATOR
    at_line_ends: bool = True
    source: str | None = None

    def cutter(self) -> DocumentCutter:
        """Returns what finds documents in a file and cuts long ones."""
        return DocumentCutter(
            separator=self.separator,
            at_line_ends=self.at_line_ends,
            field=self.field,
            piece_bytes=PIECE_BYTES,
            max_piece_bytes=MAX_PIECE_BYTES,
        )


@dataclass
class ReadNotes:
    """What readers saw beside the text: files with a byte order mark, with CRLF line ends, and blank documents."""

    boms: list[str] = field(default_factory=list)
    crlf: list[str] = field(default_factory=list)
    num_blank: int = 0


def pieces_of(blocks: Iterable[TextBlock]) -> Iterator[Piece]:
    """Yields the pieces of blocks."""
    for block in blocks:
        for text, ends in block.pieces():
            yield Piece(text, ends)


def num_bytes(text: str) -> int:
    """Returns the length of a text in UTF-8.

    Raises:
        DataError: The text holds half of a surrogate pair, which is no character.
    """
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise DataError(f"text must be Unicode, got the lone surrogate {text[error.start]!r}") from None


def sliced(blocks: Iterable[TextBlock], start: int, stop: int) -> Iterator[TextBlock]:
    """Yields what lies between two byte offsets of all the blocks' text; a document that is cut ends there."""
    position = 0
    for block in blocks:
        if position >= stop:
            return
        size = block.num_bytes
        first, last = max(0, start - position), stop - position
        position += size
        if first < size:
            # A block that ends where the slice does is cut as well, because its last document ends there.
            yield block if first == 0 and last > size else block.slice(first, last)
