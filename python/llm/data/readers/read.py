"""One reader for each kind of file; each yields texts and whether a document ends with them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from llm.data.readers.files import kind_of
from llm.data.readers.pieces import Piece, PieceCutter, ReadNotes, ReadOptions, num_bytes
from llm.data.readers.streams import BLOCK_BYTES, check_is_text, opened
from llm.errors import DataError, MissingExtraError

_BOM = b"\xef\xbb\xbf"
_PARQUET_ROWS = 1024
_MAX_UTF8 = 4


def read_pieces(file: Path, options: ReadOptions, notes: ReadNotes | None = None) -> Iterator[Piece]:
    """Yields the documents of a file in pieces; memory stays constant however long the file is.

    Args:
        file: Its name says what it holds: see `kind_of`.
        options: The field to read, the separator, and whether documents may be cut.
        notes: Collects what else the reader sees.

    Raises:
        DataError: The file can't be read, is not UTF-8, or a line, row or field is not what it must be.
        MissingExtraError: The file needs a package that is not installed.
    """
    notes = notes or ReadNotes()
    cutter = PieceCutter(options, notes)
    for text, ends in _READERS[kind_of(file)](file, options, notes):
        yield from cutter.feed(text, ends)


def _text(file: Path, options: ReadOptions, notes: ReadNotes) -> Iterator[Piece]:  # noqa: ARG001
    offset, rest = 0, b""
    for block in _blocks(file, notes):
        data = rest + block
        try:
            text, rest = data.decode(), b""
        except UnicodeDecodeError as error:
            if not block or error.reason != "unexpected end of data" or len(data) - error.start >= _MAX_UTF8:
                raise _not_utf8(file, offset + error.start, data[error.start]) from None
            text, rest = data[: error.start].decode(), data[error.start :]
        offset += len(data) - len(rest)
        yield Piece(text, ends=not block)


def _blocks(file: Path, notes: ReadNotes) -> Iterator[bytes]:
    """Yields the bytes of a text file without its byte order mark, then an empty block."""
    with opened(file) as stream:
        block = stream.read(BLOCK_BYTES)
        check_is_text(file, block)
        if block.startswith(_BOM):
            notes.boms.append(str(file))
            block = block.removeprefix(_BOM)
        has_crlf = False
        while block:
            if not has_crlf and b"\r\n" in block:
                has_crlf = True
                notes.crlf.append(str(file))
            yield block
            block = stream.read(BLOCK_BYTES)
    yield b""


def _not_utf8(file: Path, offset: int, value: int) -> DataError:
    return DataError(
        f"{file}: text must be UTF-8, got byte {value:#04x} at offset {offset}\n"
        f"hint: convert it, for example `iconv -f LATIN1 -t UTF-8 {file}`"
    )


def _jsonl(file: Path, options: ReadOptions, notes: ReadNotes) -> Iterator[Piece]:
    wanted = msgspec.defstruct("Line", [("text", str)], rename={"text": options.field})
    decode = msgspec.json.Decoder(wanted).decode
    for number, line in enumerate(_lines(file, notes), start=1):
        if not line.strip():
            continue
        try:
            text = decode(line).text  # type: ignore[attr-defined]
            num_bytes(text)
        except (msgspec.DecodeError, UnicodeDecodeError, DataError) as error:
            raise _bad_line(f"{file}, line {number}", line, options.field, error) from None
        yield Piece(text, ends=True)


def _lines(file: Path, notes: ReadNotes) -> Iterator[bytes]:
    """Yields the lines of a file without a byte order mark, of which JSON needs none."""
    rest: list[bytes] = []
    with opened(file) as stream:
        first = block = stream.read(BLOCK_BYTES)
        check_is_text(file, first)
        if first.startswith(_BOM):
            notes.boms.append(str(file))
            block = block.removeprefix(_BOM)
        while block:
            *lines, last = block.split(b"\n")
            for line in lines:
                yield b"".join([*rest, line])
                rest.clear()
            rest.append(last)
            block = stream.read(BLOCK_BYTES)
    yield b"".join(rest)


def _bad_line(where: str, line: bytes, field: str, error: Exception) -> DataError:
    try:
        value: Any = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as broken:
        shown = line[:60].decode(errors="replace")
        return DataError(
            f"{where}: each line must be a JSON object, got {shown!r}: {broken}\n"
            "hint: mend or remove the line; a file of plain text must end in .txt"
        )
    if not isinstance(value, dict):
        return DataError(f"{where}: each line must be a JSON object, got {line[:60].decode(errors='replace')!r}")
    if field not in value:
        return _no_field(where, field, list(value))
    if not isinstance(value[field], str):
        return DataError(f"{where}: the field `{field}` must be text, got {str(value[field])[:60]!r}")
    return DataError(f"{where}: {error}")


def _no_field(where: str, field: str, fields: list[str]) -> DataError:
    names = ", ".join(f"`{name}`" for name in fields) or "none"
    way_out = f"\nhint: name the one to read, such as `data.field={fields[0]}`" if fields else ""
    return DataError(f"{where}: no field `{field}`; the fields there are {names}{way_out}")


def _parquet(file: Path, options: ReadOptions, notes: ReadNotes) -> Iterator[Piece]:  # noqa: ARG001
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError(
            f"{file}: reading .parquet needs `pyarrow`\nhint: pip install 'llm-oxide[data]'"
        ) from None
    try:
        with parquet.ParquetFile(file) as table:
            column = _text_column(file, options.field, table.schema_arrow)
            row = 0
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=[column], use_threads=False):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if text is None:
                        raise DataError(f"{file}, row {row}: the column `{column}` must be text, got null")
                    yield Piece(text, ends=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: is no Parquet file that can be read: {error}") from error


def _text_column(file: Path, field: str, schema: Any) -> str:
    if field not in schema.names:
        raise _no_field(str(file), field, list(schema.names))
    kind = str(schema.field(field).type)
    if kind not in ("string", "large_string", "string_view"):
        raise DataError(f"{file}: the column `{field}` must be text, got {kind}")
    return field


_READERS: dict[str, Callable[[Path, ReadOptions, ReadNotes], Iterator[Piece]]] = {
    "text": _text,
    "jsonl": _jsonl,
    "parquet": _parquet,
}
