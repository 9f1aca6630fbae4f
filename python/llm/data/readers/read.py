"""One reader for each kind of file; each yields texts and whether a document ends with them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from llm._rust import DocumentCutter, TextBlock
from llm.data.readers.files import kind_of
from llm.data.readers.pieces import Piece, ReadNotes, ReadOptions, num_bytes, pieces_of
from llm.data.readers.streams import BLOCK_BYTES, check_is_text, conversion, opened
from llm.errors import DataError, MissingExtraError

_BOM = b"\xef\xbb\xbf"
_PARQUET_ROWS = 1024
_TEXT_TYPES = ("string", "large_string", "string_view")


def read_blocks(file: Path, options: ReadOptions, notes: ReadNotes | None = None) -> Iterator[TextBlock]:
    """Yields the documents of a file in blocks of some megabytes; memory stays constant however long the file is.

    Args:
        file: Its name says what it holds: see `kind_of`.
        options: The field to read, the separator, and whether documents may be cut.
        notes: Collects what else the reader sees.

    Raises:
        DataError: The file can't be read, is not UTF-8, or a line, row or field is not what it must be.
        MissingExtraError: The file needs a package that is not installed.
    """
    notes = notes or ReadNotes()
    cutter = options.cutter()
    for block in _READERS[kind_of(file)](file, options, notes, cutter):
        if len(block):
            yield block
    notes.num_blank += cutter.num_blank


def read_pieces(file: Path, options: ReadOptions, notes: ReadNotes | None = None) -> Iterator[Piece]:
    """Yields the documents of a file in pieces; see `read_blocks`."""
    return pieces_of(read_blocks(file, options, notes))


def _text(file: Path, options: ReadOptions, notes: ReadNotes, cutter: DocumentCutter) -> Iterator[TextBlock]:  # noqa: ARG001
    has_crlf = False
    for block in _blocks(file, notes):
        # A search for one byte is twenty times as fast as one for two.
        if not has_crlf and b"\r" in block and b"\r\n" in block:
            has_crlf = True
            notes.crlf.append(str(file))
        try:
            yield cutter.feed(block, ends=not block)
        except DataError as error:
            raise DataError(f"{file}: {error}\nhint: convert it, for example `{conversion(file, 'LATIN1')}`") from None


def _blocks(file: Path, notes: ReadNotes) -> Iterator[bytes]:
    """Yields the bytes of a file without its byte order mark, then an empty block."""
    with opened(file) as stream:
        block = stream.read(BLOCK_BYTES)
        check_is_text(file, block)
        if block.startswith(_BOM):
            notes.boms.append(str(file))
            block = block.removeprefix(_BOM) or stream.read(BLOCK_BYTES)
        while block:
            yield block
            block = stream.read(BLOCK_BYTES)
    yield b""


def _jsonl(file: Path, options: ReadOptions, notes: ReadNotes, cutter: DocumentCutter) -> Iterator[TextBlock]:
    wanted = msgspec.defstruct("Line", [("text", str)], rename={"text": options.field})
    decode = msgspec.json.Decoder(wanted).decode

    def other(number: int, line: bytes) -> str:
        """Reads a line that the fast reader refuses, or says what is wrong with it."""
        try:
            text: str = decode(line).text  # type: ignore[attr-defined]
            num_bytes(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, DataError) as error:
            raise _bad_line(f"{file}, line {number}", line, options, error) from None
        return text

    for block in _blocks(file, notes):
        yield cutter.feed_lines(block, is_last=not block, other=other)


def _bad_line(where: str, line: bytes, options: ReadOptions, error: Exception) -> DataError:
    field = options.field
    try:
        value: Any = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as broken:
        shown = line[:60].decode(errors="replace")
        return DataError(
            f"{where}: each line must be a JSON object, got {shown!r}: {broken}\n"
            "hint: mend or remove the line; a file of plain text must end in .txt"
        )
    if not isinstance(value, dict):
        return DataError(f"{where}: each line must be a JSON object, got {line[:60].decode(errors='replace')!r}")
    texts = [name for name, one in value.items() if isinstance(one, str)]
    if field not in value:
        return _no_field(where, options, list(value), texts)
    if not isinstance(value[field], str):
        shown = msgspec.json.encode(value[field])[:60].decode(errors="replace")
        return DataError(f"{where}: the field `{field}` must be text, got {shown}{_field_hint(texts, options)}")
    return DataError(f"{where}: {error}")


def _no_field(where: str, options: ReadOptions, fields: list[str], texts: list[str]) -> DataError:
    """Returns the error about a field that is not there; `texts` are those of `fields` that hold text."""
    names = ", ".join(f"`{name}`" for name in fields) or "none"
    return DataError(f"{where}: no field `{options.field}`; the fields there are {names}{_field_hint(texts, options)}")


def _field_hint(texts: list[str], options: ReadOptions) -> str:
    if not texts:
        return "\nhint: none of them is text: write one that is, for example with `jq`"
    if options.source is None:
        return f"\nhint: name the one to read, such as `data.field={texts[0]}`"
    own = f'`field = "{texts[0]}"` of the source `{options.source}` in `data.sources`'
    return f"\nhint: name the one to read, such as {own}"


def _parquet(file: Path, options: ReadOptions, notes: ReadNotes, cutter: DocumentCutter) -> Iterator[TextBlock]:  # noqa: ARG001
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError(
            f"{file}: reading .parquet needs `pyarrow`\nhint: pip install 'llm-oxide[data]'"
        ) from None
    try:
        with parquet.ParquetFile(file) as table:
            column = _text_column(file, options, table.schema_arrow)
            row = 0
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=[column], use_threads=False):
                texts = batch.column(0).cast(pyarrow.large_string())
                place = _Row(file, column, row)
                place.check_none_is_missing(texts)
                try:
                    block = cutter.feed_rows(*_arrays(texts))
                except DataError:
                    raise place.first_that_is_no_utf8(texts) from None
                row += len(texts)
                yield block
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: is no Parquet file that can be read: {error}") from error


class _Row(NamedTuple):
    """Names rows of a batch in messages; `before` rows of the file come before the batch."""

    file: Path
    column: str
    before: int

    def check_none_is_missing(self, texts: Any) -> None:
        """Refuses a row without a value."""
        if texts.null_count:
            raise self._error(texts.is_null().to_pylist().index(True), "must be text, got null")

    def first_that_is_no_utf8(self, texts: Any) -> DataError:
        """Returns the error that names it."""
        for idx, value in enumerate(texts.cast("large_binary").to_pylist()):
            try:
                value.decode()
            except UnicodeDecodeError as error:
                return self._error(idx, f"must be text in UTF-8, got byte {value[error.start]:#04x}")
        return self._error(0, "must be text in UTF-8")

    def _error(self, idx: int, words: str) -> DataError:
        return DataError(f"{self.file}, row {self.before + idx + 1}: the column `{self.column}` {words}")


def _arrays(texts: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of all rows, and where each begins and the last ends."""
    _, offsets, values = texts.buffers()
    starts = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(values, np.uint8) if values else np.empty(0, np.uint8), starts


def _text_column(file: Path, options: ReadOptions, schema: Any) -> str:
    field = options.field
    if field not in schema.names:
        texts = [one.name for one in schema if str(one.type) in _TEXT_TYPES]
        raise _no_field(str(file), options, list(schema.names), texts)
    kind = str(schema.field(field).type)
    if kind not in _TEXT_TYPES:
        raise DataError(f"{file}: the column `{field}` must be text, got {kind}")
    return field


_READERS: dict[str, Callable[[Path, ReadOptions, ReadNotes, DocumentCutter], Iterator[TextBlock]]] = {
    "text": _text,
    "jsonl": _jsonl,
    "parquet": _parquet,
}
