"""Rows of JSON lines and Parquet, whole, one at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from llm.data.readers.files import kind_of
from llm.data.readers.streams import BLOCK_BYTES, check_is_text, opened
from llm.errors import DataError, MissingExtraError

_BOM = b"\xef\xbb\xbf"
_PARQUET_ROWS = 256


class Row(NamedTuple):
    """A row and where it stands, such as `chats.jsonl, line 3`."""

    where: str
    values: dict[str, Any]


def read_rows(file: Path) -> Iterator[Row]:
    """Yields the rows of a `.jsonl` or `.parquet` file, plain or compressed; blank lines are passed over.

    Raises:
        DataError: The file has another format, can't be read, or a line is no JSON object.
        MissingExtraError: The file needs a package that is not installed.
    """
    kind = kind_of(file)
    if kind == "text":
        raise DataError(
            f"{file}: rows are read from .jsonl and .parquet, got a file of text\n"
            "hint: write one JSON object a line, such as "
            '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
        )
    yield from _jsonl(file) if kind == "jsonl" else _parquet(file)


def _jsonl(file: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(file), 1):
        if line.isspace() or not line:
            continue
        where = f"{file}, line {number}"
        shown = line[:60].decode(errors="replace")
        try:
            values = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(
                f"{where}: each line must be a JSON object, got {shown!r}: {error}\nhint: mend or remove the line"
            ) from None
        if not isinstance(values, dict):
            raise DataError(f"{where}: each line must be a JSON object, got {shown!r}")
        yield Row(where, values)


def _lines(file: Path) -> Iterator[bytes]:
    with opened(file) as stream:
        block = stream.read(BLOCK_BYTES)
        check_is_text(file, block)
        block = block.removeprefix(_BOM)
        rest = b""
        while block:
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
            block = stream.read(BLOCK_BYTES)
        if rest:
            yield rest


def _parquet(file: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError(
            f"{file}: reading .parquet needs `pyarrow`\nhint: pip install 'llm-oxide[data]'"
        ) from None
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, use_threads=False):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{file}, row {number}", values)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: is no Parquet file that can be read: {error}") from error
