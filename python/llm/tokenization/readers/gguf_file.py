"""The metadata of a GGUF file, read without its weights, and written.

Source: ggml-org/ggml `docs/gguf.md`, versions 2 and 3.
"""

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm.errors import FileError, TokenizerError

MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
# Format by number of the type; strings and arrays have formats of their own.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_UINT32, _FLOAT32, _INT32, _BOOL = 4, 6, 5, 7


def read_metadata(path: Path, prefix: str) -> dict[str, Any]:
    """The values whose key begins with `prefix`. Cost: the metadata alone is looked at, however large the file is.

    Raises:
        FileError: It can't be read.
        TokenizerError: It is no GGUF file of version 2 or 3, or torn: no count in it is believed before it is checked
            against the file's size.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Cursor(content, path).metadata(prefix)
    except OSError as error:
        raise FileError(f"{path}: can't be read: {error.strerror}") from error
    except ValueError as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{path}: must be a GGUF file, got an empty one") from error


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, content: mmap.mmap, path: Path) -> None:
        self._content = content
        self._path = path
        self._at = 0

    def metadata(self, prefix: str) -> dict[str, Any]:
        if self._take(4) != MAGIC:
            raise self._error(f"must begin with {MAGIC!r}, got {self._content[:4]!r}")
        version = self._number("I")
        if version not in (2, 3):
            raise self._error(f"must be of version 2 or 3 in little-endian order, got version {version}")
        self._number("Q")  # tensors
        found = {}
        # A key and its value take 13 bytes at least.
        for _ in range(self._count(13)):
            key = self._text()
            kind = self._number("I")
            if key.startswith(prefix):
                found[key] = self._value(kind)
            else:
                self._skip(kind)
        return found

    def _error(self, message: str) -> TokenizerError:
        return TokenizerError(f"{self._path}: {message}")

    def _advance(self, num_bytes: int) -> int:
        start, end = self._at, self._at + num_bytes
        if end > len(self._content):
            raise self._error(
                f"is torn: {num_bytes} bytes are announced at offset {start}, the file ends at {len(self._content)}"
            )
        self._at = end
        return start

    def _take(self, num_bytes: int) -> bytes:
        start = self._advance(num_bytes)
        return self._content[start : self._at]

    def _number(self, letter: str) -> Any:
        (value,) = struct.unpack(f"<{letter}", self._take(struct.calcsize(f"<{letter}")))
        return value

    def _count(self, min_bytes: int) -> int:
        """A count of things that take `min_bytes` each at least; more than fit the file is an error."""
        count: int = self._number("Q")
        left = len(self._content) - self._at
        if count * min_bytes > left:
            raise self._error(f"is torn: {count} values are announced at offset {self._at}, {left} bytes are left")
        return count

    def _text(self) -> str:
        content = self._take(self._number("Q"))
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self._error(f"strings must be UTF-8, got {content[:40]!r}") from error

    def _letter(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self._error(f"types of values must be from 0 to 12, got {kind} at offset {self._at}")
        return _SCALARS[kind]

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._number(self._letter(kind))
        kind = self._number("I")
        if kind == _STRING:
            return [self._text() for _ in range(self._count(8))]
        if kind == _ARRAY:
            raise self._error("lists of lists are not supported")
        letter = self._letter(kind)
        size = struct.calcsize(f"<{letter}")
        count = self._count(size)
        return list(struct.unpack(f"<{count}{letter}", self._take(count * size)))

    def _skip(self, kind: int) -> None:
        if kind == _STRING:
            self._advance(self._number("Q"))
        elif kind != _ARRAY:
            self._advance(struct.calcsize(f"<{self._letter(kind)}"))
        else:
            self._skip_array()

    def _skip_array(self) -> None:
        kind = self._number("I")
        if kind == _ARRAY:
            raise self._error("lists of lists are not supported")
        if kind == _STRING:
            for _ in range(self._count(8)):
                self._skip(_STRING)
            return
        size = struct.calcsize(f"<{self._letter(kind)}")
        self._advance(self._count(size) * size)


def metadata_bytes(values: Mapping[str, Any]) -> bytes:
    """A GGUF file of version 3 with these values and no tensors.

    Strings, bools, ints (as uint32) and floats (float32) and lists of strings, ints (as int32) or floats are written.
    """
    parts = [MAGIC, struct.pack("<IQQ", 3, 0, len(values))]
    for key, value in values.items():
        parts += [_text_bytes(key), _value_bytes(value)]
    return b"".join(parts)


def _text_bytes(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _value_bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text_bytes(value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text_bytes, value))
    kind, letter = (_FLOAT32, "f") if any(isinstance(item, float) for item in value) else (_INT32, "i")
    return struct.pack(f"<IIQ{len(value)}{letter}", _ARRAY, kind, len(value), *value)
