"""Reads and writes the head of a GGUF file: the metadata and the table of tensors, without tensor contents.

Source: ggml-org/ggml `docs/gguf.md`, versions 2 and 3.
"""

import mmap
import struct
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from llm.errors import FileError, LLMError, TokenizerError
from llm.tokenization.files import raise_if_stand_in

MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
# `struct` format by type number; strings and arrays are handled separately.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_UINT32, _FLOAT32, _INT32, _BOOL = 4, 6, 5, 7


_MAX_DIMENSIONS = 4
# The format's own limit.
_MAX_NAME_BYTES = 64
# Far above those of any model; a few bytes of a file take a hundred in memory.
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 18
_MAX_LIST_VALUES = 1 << 22
_U64 = struct.Struct("<Q")


class TensorEntry(NamedTuple):
    """One entry of the table of tensors.

    Attributes:
        name: The tensor's name in llama.cpp.
        shape: Sizes in PyTorch's order, with the contiguous dimension last; the file stores them reversed.
        type_id: Number of the type of the values.
        offset: Offset of the first byte from the start of the tensor contents.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int

    @property
    def num_values(self) -> int:
        """The number of values in the tensor."""
        return prod(self.shape)


class Head(NamedTuple):
    """The part of a file before the tensor contents.

    Attributes:
        metadata: Values of the requested keys.
        tensors: Tensor entries in the order of the table.
        num_bytes: Size up to the end of the table; contents begin at the next multiple of `general.alignment`.
        content: The whole file, memory-mapped; writes change memory only.
    """

    metadata: dict[str, Any]
    tensors: list[TensorEntry]
    num_bytes: int
    content: mmap.mmap


def read_metadata(path: Path, prefix: str) -> dict[str, Any]:
    """Returns the metadata values of keys that begin with `prefix`; reads only the metadata, even of a large file.

    Raises:
        FileError: The file can't be read.
        TokenizerError: The file is not GGUF of version 2 or 3, or is truncated; every count is checked against the
            file's size before use.
    """
    with _mapped(path, TokenizerError) as content:
        return _Cursor(content, path, TokenizerError).head(lambda key: key.startswith(prefix)).metadata


def read_head(path: Path, wanted: Callable[[str], bool], error: type[LLMError]) -> Head:
    """Returns the metadata of keys that are `wanted`, and the table of tensors, without reading tensor contents.

    Raises:
        FileError: The file can't be read.
        LLMError: An error of class `error`: the file is not GGUF of version 2 or 3, or is truncated.
    """
    cursor = _Cursor(_mapped(path, error), path, error)
    head = cursor.head(wanted)
    return head._replace(tensors=[cursor.tensor() for _ in range(cursor.num_tensors)], num_bytes=cursor.at)


def _mapped(path: Path, error: type[LLMError]) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as cause:
        raise FileError(f"{path}: can't be read: {cause.strerror}") from cause
    except ValueError as cause:
        raise error(f"{path}: must be a GGUF file, got an empty one") from cause


class _Cursor:
    """Reads values from a mapped file in order."""

    def __init__(self, content: mmap.mmap, path: Path, error: type[LLMError]) -> None:
        self._content = content
        self._path = path
        self._error_class = error
        self.at = 0
        self.num_tensors = 0

    def head(self, wanted: Callable[[str], bool]) -> Head:
        """Reads and returns the metadata, up to the table of tensors."""
        if self._take(4) != MAGIC:
            raise_if_stand_in(self._path, self._error_class)
            raise self._error(f"must begin with {MAGIC!r}, got {self._content[:4]!r}")
        version = self._number("I")
        if version not in (2, 3) and not version % (1 << 24):
            raise self._error("must be in little-endian order, got a big-endian file")
        if version not in (2, 3):
            raise self._error(f"must be of version 2 or 3 in little-endian order, got version {version}")
        self.num_tensors = self._number("Q")
        if self.num_tensors > _MAX_TENSORS:
            raise self._error(f"must have at most {_MAX_TENSORS:,} tensors, got {self.num_tensors:,}")
        found: dict[str, Any] = {}
        # A key and its value take at least 13 bytes.
        count = self._count(13)
        if count > _MAX_KEYS:
            raise self._error(f"must have at most {_MAX_KEYS:,} keys, got {count:,}")
        for _ in range(count):
            key = self._text()
            if key in found:
                raise self._error(f"`{key[:60]}` is there twice")
            kind = self._number("I")
            if wanted(key):
                found[key] = self._value(kind)
            else:
                self._skip(kind)
        return Head(found, [], self.at, self._content)

    def tensor(self) -> TensorEntry:
        """Reads and returns the next entry of the table of tensors."""
        length = self._number("Q")
        if length > _MAX_NAME_BYTES:
            raise self._error(f"names of tensors have at most {_MAX_NAME_BYTES} bytes, got {length} at {self.at}")
        name = self._decoded(length)
        num_dimensions = self._number("I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise self._error(f"tensors have at most {_MAX_DIMENSIONS} dimensions, got {num_dimensions} for {name!r}")
        shape = tuple(self._number("Q") for _ in range(num_dimensions))[::-1]
        return TensorEntry(name, shape, self._number("I"), self._number("Q"))

    def _error(self, message: str) -> LLMError:
        return self._error_class(f"{self._path}: {message}")

    def _advance(self, num_bytes: int) -> int:
        start, end = self.at, self.at + num_bytes
        if end > len(self._content):
            raise self._error(
                f"is truncated: {num_bytes} bytes are announced at offset {start}, "
                f"the file ends at {len(self._content)}"
            )
        self.at = end
        return start

    def _take(self, num_bytes: int) -> bytes:
        start = self._advance(num_bytes)
        return self._content[start : self.at]

    def _number(self, letter: str) -> Any:
        (value,) = struct.unpack(f"<{letter}", self._take(struct.calcsize(f"<{letter}")))
        return value

    def _count(self, min_bytes: int) -> int:
        """Returns a count of items of at least `min_bytes` each; a count that exceeds the file is an error."""
        count: int = self._number("Q")
        left = len(self._content) - self.at
        if count * min_bytes > left:
            raise self._error(f"is truncated: {count} values are announced at offset {self.at}, {left} bytes are left")
        return count

    def _text(self) -> str:
        return self._decoded(self._number("Q"))

    def _decoded(self, num_bytes: int) -> str:
        content = self._take(num_bytes)
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self._error(f"strings must be UTF-8, got {content[:40]!r}") from error

    def _letter(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self._error(f"value types must be from 0 to 12, got {kind} at offset {self.at}")
        return _SCALARS[kind]

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._number(self._letter(kind))
        kind = self._number("I")
        if kind == _ARRAY:
            raise self._error("lists of lists are not supported")
        letter = None if kind == _STRING else self._letter(kind)
        size = _U64.size if letter is None else struct.calcsize(f"<{letter}")
        count = self._count(size)
        if count > _MAX_LIST_VALUES:
            raise self._error(f"lists have at most {_MAX_LIST_VALUES:,} values, got {count:,} at offset {self.at}")
        if letter is None:
            return [self._text() for _ in range(count)]
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
            self._skip_strings(self._count(8))
            return
        size = struct.calcsize(f"<{self._letter(kind)}")
        self._advance(self._count(size) * size)

    def _skip_strings(self, count: int) -> None:
        # A vocabulary and its merges have half a million strings; reading each with `_text` takes 6 times as long.
        at, last = self.at, len(self._content) - _U64.size
        for _ in range(count):
            if at > last:
                break
            at += _U64.size + _U64.unpack_from(self._content, at)[0]
        self._advance(at - self.at)


def metadata_bytes(values: Mapping[str, Any], tensors: Iterable[TensorEntry] = ()) -> bytes:
    """Returns the head of a GGUF file of version 3 with these values and tensors.

    Values may be strings, bools, ints (written as uint32), floats (float32), and lists of strings, ints (int32) or
    floats.
    """
    table = [_tensor_bytes(entry) for entry in tensors]
    parts = [MAGIC, struct.pack("<IQQ", 3, len(table), len(values))]
    for key, value in values.items():
        parts += [_text_bytes(key), _value_bytes(value)]
    return b"".join(parts + table)


def _tensor_bytes(entry: TensorEntry) -> bytes:
    num_dimensions = len(entry.shape)
    numbers = (num_dimensions, *entry.shape[::-1], entry.type_id, entry.offset)
    return _text_bytes(entry.name) + struct.pack(f"<I{num_dimensions}QIQ", *numbers)


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
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text_bytes, value))
    kind, letter = (_FLOAT32, "f") if any(isinstance(item, float) for item in value) else (_INT32, "i")
    return struct.pack(f"<IIQ{len(value)}{letter}", _ARRAY, kind, len(value), *value)
