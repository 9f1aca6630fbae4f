"""Bytes of files, decompressed as they are read."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llm.errors import DataError, MissingExtraError

# Enough to keep all cores busy with encoding it, little enough to fit in any memory.
BLOCK_BYTES = 1 << 22
# Compressed bytes that are read at once; a byte can become thousands.
_ZSTANDARD_BYTES = 1 << 13
# What prints the content of a compressed file.
_UNPACKERS = {".gz": "zcat", ".zst": "zstdcat"}
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# The first bytes of files that are no text, and what to do about each.
_MAGIC = (
    (b"\x1f\x8b", "a gzip file", "let its name end in .txt.gz or .jsonl.gz"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", "let its name end in .txt.zst or .jsonl.zst"),
    (b"PAR1", "a Parquet file", "let its name end in .parquet"),
    (b"PK\x03\x04", "a zip archive or an office document", "unpack it, or save the document as plain text"),
    (b"%PDF", "a PDF", "extract its text: `pdftotext {0}`"),
    (b"SQLite format 3", "an SQLite database", "export the text to .jsonl"),
)


@contextmanager
def opened(file: Path) -> Iterator[IO[bytes]]:
    """Opens a file for reading, through the decompression that its name asks for.

    Raises:
        DataError: The file can't be read, or is not what its name says.
        MissingExtraError: The file is a `.zst` and `zstandard` is not installed.
    """
    try:
        with _open(file) as stream:
            try:
                yield stream
            except (gzip.BadGzipFile, zlib.error, EOFError) as error:
                raise _damaged_gzip(file, stream.tell(), error) from error
    except OSError as error:
        raise DataError(f"{file}: can't be read: {error.strerror or error}") from error


def _damaged_gzip(file: Path, num_bytes: int, error: Exception) -> DataError:
    place = f" after {num_bytes:,} bytes of its content" if num_bytes else ""
    return DataError(f"{file}: the gzip file is cut short or damaged{place}: {error}\nhint: copy or download it again")


def conversion(file: Path, encoding: str) -> str:
    """Returns a command that makes UTF-8 of a text in another encoding, compressed or not."""
    unpack = _UNPACKERS.get(file.suffix.lower())
    convert = f"iconv -f {encoding} -t UTF-8"
    return f"{convert} {file} > text.txt" if unpack is None else f"{unpack} {file} | {convert} > text.txt"


def check_is_text(file: Path, beginning: bytes) -> None:
    """Checks that the first bytes of a file can be those of UTF-8 text.

    Raises:
        DataError: They are those of another format, which the message names.
    """
    if beginning.startswith(_UTF16_MARKS):
        raise DataError(
            f"{file}: text must be UTF-8, got UTF-16 text\nhint: convert it: `{conversion(file, 'UTF-16')}`"
        )
    for magic, what, way_out in _MAGIC:
        if beginning.startswith(magic):
            raise DataError(f"{file}: text must be UTF-8, got {what}\nhint: {way_out.format(file)}")
    if b"\0" not in beginning[:4096]:
        return
    share = beginning[:4096].count(b"\0") / len(beginning[:4096])
    if share > 0.3:
        way_out = f"it looks like UTF-16; convert it: `{conversion(file, 'UTF-16LE')}`"
    else:
        way_out = "it looks like a binary file; leave it out of the corpus"
    offset = beginning.index(b"\0")
    raise DataError(f"{file}: text must be UTF-8 without zero bytes, got one at offset {offset}\nhint: {way_out}")


def _open(file: Path) -> Any:
    if file.suffix.lower() == ".gz":
        return gzip.open(file, "rb")
    if file.suffix.lower() == ".zst":
        return _Zstandard(file)
    return file.open("rb")


class _Zstandard:
    """The content of a `.zst` file, whose errors are ours; a file that is cut short is one of them."""

    def __init__(self, file: Path) -> None:
        try:
            import zstandard
        except ImportError:
            raise MissingExtraError(
                f"{file}: reading .zst needs `zstandard`\nhint: pip install 'llm-oxide[data]'"
            ) from None
        self._path = file
        self._file = file.open("rb")
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None  # None between two frames
        self._rest = b""  # the beginning of the next frame
        self._ahead = bytearray()

    def read(self, size: int) -> bytes:
        """Returns `size` bytes, or fewer at the end."""
        while len(self._ahead) < size:
            part = self._rest or self._file.read(_ZSTANDARD_BYTES)
            if not part:
                break
            self._ahead += self._decompressed(part)
        if len(self._ahead) < size and self._frame is not None:
            raise self._damaged("it is cut short")
        taken = bytes(self._ahead[:size])
        del self._ahead[:size]
        return taken

    def _decompressed(self, part: bytes) -> bytes:
        self._frame = self._frame or self._decompressor.decompressobj()
        try:
            found: bytes = self._frame.decompress(part)
        except self._error as error:
            raise self._damaged(str(error)) from error
        self._rest = self._frame.unused_data if self._frame.eof else b""
        self._frame = None if self._frame.eof else self._frame
        return found

    def _damaged(self, what: str) -> DataError:
        place = f"before byte {self._file.tell():,} of the file"
        return DataError(
            f"{self._path}: the Zstandard file is damaged {place}: {what}\nhint: copy or download it again"
        )

    def __enter__(self) -> "_Zstandard":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
