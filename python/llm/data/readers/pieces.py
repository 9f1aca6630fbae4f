"""Documents as a stream of pieces, so that no document has to fit into memory."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from llm.errors import DataError

DEFAULT_SEPARATOR = "<|endoftext|>"
PIECE_CHARS = 1 << 18
# A line longer than this is cut at a space: the tokens around the cut can differ from those of the whole line.
MAX_PIECE_CHARS = 1 << 24
_LINE_END = re.compile(r"(?<=\S)\n(?=[^\s/])")


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
    """

    field: str = "text"
    separator: str | None = DEFAULT_SEPARATOR
    at_line_ends: bool = True


@dataclass
class ReadNotes:
    """What readers saw beside the text: files with a byte order mark, with CRLF line ends, and blank documents."""

    boms: list[str] = field(default_factory=list)
    crlf: list[str] = field(default_factory=list)
    num_blank: int = 0


class PieceCutter:
    """Cuts texts into documents at the separator, and long documents into pieces that no token spans.

    The line break after a separator belongs to the separator. Documents without a visible character are left out.
    """

    def __init__(self, options: ReadOptions, notes: ReadNotes) -> None:
        self._options = options
        self._notes = notes
        self._rest = ""
        self._has_pieces = False
        self._after_separator = False

    def feed(self, text: str, ends: bool) -> Iterator[Piece]:
        """Yields the pieces that are complete with `text`; `ends` says that a document ends with it."""
        parts = [self._rest + text]
        if self._options.separator:
            parts = parts[0].split(self._options.separator)
        for part in parts[:-1]:
            yield from self._finish(part)
            self._after_separator = True
        self._rest = parts[-1]
        if ends:
            yield from self._finish(self._rest)
            self._rest, self._after_separator = "", False
        elif len(self._rest) > PIECE_CHARS:
            yield from self._cut()

    def _finish(self, text: str) -> Iterator[Piece]:
        """Yields the last pieces of a document."""
        text = self._without_line_break(text)
        if not self._has_pieces and not text.strip():
            self._notes.num_blank += bool(text)
            return
        start = 0
        while (stop := self._border(text, start, len(text))) is not None:
            yield Piece(text[start:stop], ends=False)
            start = stop
        yield Piece(text[start:], ends=True)
        self._has_pieces = False

    def _cut(self) -> Iterator[Piece]:
        """Yields pieces of the document that isn't complete yet."""
        text = self._without_line_break(self._rest)
        # The last characters can be the beginning of a separator.
        last = len(text) - len(self._options.separator or "")
        start = 0
        while (stop := self._border(text, start, last)) is not None:
            if self._has_pieces or text[start:stop].strip():
                yield Piece(text[start:stop], ends=False)
                self._has_pieces = True
                start = stop
                continue
            break
        self._rest = text[start:]

    def _border(self, text: str, start: int, last: int) -> int | None:
        if not self._options.at_line_ends or last - start <= PIECE_CHARS:
            return None
        match = _LINE_END.search(text, start + PIECE_CHARS)
        if match is not None and match.end() <= last:
            return match.end()
        if last - start <= MAX_PIECE_CHARS:
            return None
        space = text.rfind(" ", start + 1, start + MAX_PIECE_CHARS)
        return space if space > 0 else start + MAX_PIECE_CHARS

    def _without_line_break(self, text: str) -> str:
        if self._after_separator:
            self._after_separator = False
            return text.removeprefix("\r\n") if text.startswith("\r") else text.removeprefix("\n")
        return text


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


def sliced(pieces: Iterable[Piece], start: int, stop: int) -> Iterator[Piece]:
    """Yields what lies between two byte offsets of all the pieces' text; a document that is cut ends there."""
    position = 0
    for piece in pieces:
        if position >= stop:
            return
        size = num_bytes(piece.text)
        first, last = start - position, stop - position
        position += size
        if first >= size:
            continue
        if first <= 0 and last >= size:
            yield Piece(piece.text, piece.ends or last == size)
            continue
        before, within = _cut_bytes(piece.text, max(0, first))[0], _cut_bytes(piece.text, last)[0]
        if text := within[len(before) :]:
            yield Piece(text, piece.ends or last <= size)


def _cut_bytes(text: str, size: int) -> tuple[str, str]:
    """The part of a text that fits into `size` bytes of UTF-8, and the rest."""
    head = text.encode()[:size].decode(errors="ignore")
    return head, text[len(head) :]
