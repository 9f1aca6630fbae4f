"""Token ids on disk, memory-mapped: a `.bin` of ids, an `.ends` of documents' ends, and a `.json` written last."""

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from llm._rust import crc32
from llm.checkpoint import read_json
from llm.checkpoint.atomic import sync, write_atomically
from llm.checkpoint.space import explains_failed_writes
from llm.errors import CheckpointError, DataError
from llm.tokenization import BlockIds, TokenArray

_PIECE_BYTES = 1 << 22


def write_shard(file: Path, texts: Iterable[BlockIds], vocab_size: int, num_bytes: int = 0) -> None:
    """Writes token ids to `file`, in constant memory; see `ShardWriter`."""
    with ShardWriter(file, vocab_size, num_bytes) as shard:
        for text in texts:
            shard.write(text)


class ShardWriter:
    """Writes a shard part by part, in constant memory.

    All files have their names only once they are complete. The `.json` comes last and makes the shard exist.

    Args:
        file: The shard's `.bin`.
        vocab_size: Number of different ids, which decides how wide an id is.
        num_bytes: Bytes of the text that the ids stand for.

    Raises:
        FileError: The disk is full, or the directory can't be written.
    """

    def __init__(self, file: Path, vocab_size: int, num_bytes: int = 0) -> None:
        self.file = file
        self._facts: dict[str, Any] = {"num_bytes": num_bytes, "vocab_size": vocab_size}
        self._dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
        self._names = [file, file.with_suffix(".ends")]
        self._temporary = [name.with_name(f".tmp-{os.getpid()}-{name.name}") for name in self._names]
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> "ShardWriter":
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.with_suffix(".json").unlink(missing_ok=True)
        with explains_failed_writes(self.file):
            self._tokens, self._ends = (_Summed(self._opened.enter_context(one.open("wb"))) for one in self._temporary)
        return self

    def write(self, part: BlockIds) -> None:
        """Appends documents, or parts of one."""
        with explains_failed_writes(self.file):
            self._ends.write(part.ends + self._tokens.num_bytes // self._dtype.itemsize)
            self._tokens.write(part.ids.astype(self._dtype, copy=False))

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        try:
            with explains_failed_writes(self.file):
                self._opened.close()
                if kind is None:
                    self._publish()
        finally:
            for name in self._temporary:
                name.unlink(missing_ok=True)

    def _publish(self) -> None:
        for source, name in zip(self._temporary, self._names, strict=True):
            sync(source)
            source.replace(name)
        facts = self._facts | {
            "dtype": self._dtype.name,
            "num_tokens": self._tokens.num_bytes // self._dtype.itemsize,
            "num_documents": self._ends.num_bytes // 8,
            "checksums": [self._tokens.checksum, self._ends.checksum],
        }
        write_atomically(self.file.with_suffix(".json"), json.dumps(facts) + "\n")


def read_facts(file: Path) -> dict[str, Any]:
    """Returns what is known about a shard: `num_tokens`, `num_documents`, `num_bytes` of text and more.

    Raises:
        DataError: The shard is missing, or its description is no such thing.
    """
    meta_file = file.with_suffix(".json")
    if not file.is_file() or not meta_file.is_file():
        raise DataError(f"no token shard at {file}\nhint: start the run anew")
    try:
        meta = read_json(meta_file)
    except CheckpointError as error:
        raise DataError(f"{error}\nhint: start the run anew") from None
    if not {"dtype", "num_tokens"} <= meta.keys():
        raise DataError(f"{meta_file} doesn't describe a token shard\nhint: start the run anew")
    return meta


def open_shard(file: Path) -> TokenArray:
    """Memory-maps a shard's ids, read-only.

    Raises:
        DataError: The shard is missing, or its size differs from the recorded one.
    """
    meta = read_facts(file)
    dtype: np.dtype[Any] = np.dtype(meta["dtype"])
    token_ids: TokenArray = _mapped(file, dtype, meta["num_tokens"])
    return token_ids


def open_ends(file: Path) -> NDArray[np.int64]:
    """Memory-maps the index after each document's last token.

    Raises:
        DataError: The shard is missing, or the size differs from the recorded one.
    """
    ends: NDArray[np.int64] = _mapped(file.with_suffix(".ends"), np.dtype(np.int64), read_facts(file)["num_documents"])
    return ends


def damage_of(file: Path) -> str | None:
    """Returns what is wrong with a shard, whose files are read for it; None if nothing is."""
    try:
        meta = read_facts(file)
        open_shard(file)
        checksums = meta.get("checksums")
        if checksums is not None:
            open_ends(file)
    except DataError as error:
        return str(error).partition("\n")[0]
    names = (file, file.with_suffix(".ends"))
    for name, checksum in zip(names, checksums or (), strict=False):
        if _checksum(name) != checksum:
            return f"{name} has other bytes than were written"
    return None


class TokenStream:
    """The ids of several shards as one array, of which slices are read."""

    def __init__(self, shards: Sequence[TokenArray]) -> None:
        self._shards = [shard for shard in shards if len(shard)]
        self._starts = np.cumsum([0, *map(len, self._shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, places: slice) -> TokenArray:
        start, stop, _ = places.indices(len(self))
        first, last = np.searchsorted(self._starts, [start, max(start, stop - 1)], side="right") - 1
        parts = [
            self._shards[idx][max(0, start - self._starts[idx]) : stop - self._starts[idx]]
            for idx in range(first, min(last + 1, len(self._shards)))
        ]
        whole: Any = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, np.uint16)
        joined: TokenArray = whole
        return joined


class _Summed:
    """A file with the checksum and size of what was written to it."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self.num_bytes = self.checksum = 0

    def write(self, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values).view(np.uint8)
        self._out.write(data.data)
        self.num_bytes += data.nbytes
        self.checksum = crc32(data, self.checksum)


def _mapped(file: Path, dtype: "np.dtype[Any]", length: int) -> Any:
    size = file.stat().st_size if file.is_file() else 0
    if size != length * dtype.itemsize:
        raise DataError(
            f"{file} must have {length * dtype.itemsize} bytes, got {size}\n"
            "hint: it was changed or torn; start the run anew"
        )
    return np.memmap(file, dtype=dtype, mode="r") if length else np.empty(0, dtype)


def _checksum(file: Path) -> int:
    checksum = 0
    with file.open("rb", buffering=0) as opened:
        while piece := opened.read(_PIECE_BYTES):
            checksum = crc32(np.frombuffer(piece, np.uint8), checksum)
    return checksum
