"""Packing: whole documents side by side in one sample, none of which sees another."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm.data.samples import TokenSamples
from llm.data.shards import TokenStream
from llm.tokenization import TokenArray

# Documents among which the fullest combinations are sought; more would fill samples no better and take more memory.
_CHUNK = 1 << 16


class PackingFacts(NamedTuple):
    """How documents fit into samples.

    Attributes:
        num_samples: Samples.
        num_cut: Documents longer than a sample, which are cut into windows.
        num_dropped: Documents of a single token, from which nothing can be predicted.
        filled: Share of the samples' places that hold a token.
    """

    num_samples: int
    num_cut: int
    num_dropped: int
    filled: float


class PackedPieces(TokenSamples):
    """Samples that each consist of pieces of documents, as an index lists them.

    Args:
        token_ids: All documents, one after another.
        index: The file that `write_index` wrote.
    """

    def __init__(self, token_ids: TokenStream, index: Path) -> None:
        self.token_ids = token_ids
        self._pieces = np.load(index, mmap_mode="r")  # (P, 2): start, number of tokens
        self._first = np.load(_first_of(index), mmap_mode="r")  # (S + 1,): where each sample begins

    def __len__(self) -> int:
        return len(self._first) - 1

    @property
    def num_predicted(self) -> int:
        """Tokens that are predicted in all samples together."""
        return int((self._pieces[:, 1] - 1).sum())

    def sequences(self, idx: int) -> list[TokenArray]:
        """Returns the pieces of documents in a sample."""
        return [self.token_ids[start:stop] for start, stop in self.places(idx)]

    def places(self, idx: int) -> list[tuple[int, int]]:
        """Returns where each piece of a sample starts and stops in all tokens."""
        pieces = self._pieces[self._first[idx] : self._first[idx + 1]].tolist()
        return [(start, start + length) for start, length in pieces]


class PackedDocuments(PackedPieces):
    """Documents packed into samples of at most `context_length` places.

    A document that is longer than a sample is cut into windows. Each document is a sequence of its own: positions begin
    at 0 and attention stays within it.

    Args:
        token_ids: All documents, one after another.
        ends: The index after each document's last token, in parts.
        context_length: Places of a sample.
        index: File that keeps which pieces of documents make up which sample; written if missing.
    """

    def __init__(
        self, token_ids: TokenStream, ends: Sequence[NDArray[np.int64]], context_length: int, index: Path
    ) -> None:
        if not index.is_file():
            write_index(index, _pieces(ends, context_length), context_length)
        super().__init__(token_ids, index)
        places = max(1, len(self) * context_length)
        self.facts = PackingFacts(len(self), *_counted(ends, context_length), self.num_predicted / places)


def pack(lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Returns which pieces go into which bin: each goes, longest first, into the fullest bin that has room for it.

    Source: Johnson, "Near-optimal bin packing algorithms", 1973, best fit decreasing.

    Args:
        lengths: Places that each piece needs, int64 `[N]` in `[1, capacity]`.
        capacity: Places of a bin.
    """
    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set if a bin has room for r more
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        fitting = rooms >> length
        if fitting == 0:
            bins.append([piece])
            chosen, room = len(bins) - 1, capacity - length
        else:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = by_room[room].pop()
            rooms &= ~(1 << room) if not by_room[room] else -1
            bins[chosen].append(piece)
            room -= length
        if room:
            by_room[room].append(chosen)
            rooms |= 1 << room
    return bins


def write_index(
    index: Path, pieces: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]], capacity: int, packs: bool = True
) -> None:
    """Distributes pieces over samples; the file appears under its name once it is complete.

    Args:
        index: The file to write, and one beside it.
        pieces: Starts and numbers of tokens, chunk by chunk; a sample holds pieces of one chunk.
        capacity: Places of a sample; a piece takes one less than it has tokens.
        packs: Whether samples hold several pieces.
    """
    raw = index.with_name(f".tmp-{os.getpid()}-{index.name}.raw")
    sizes: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
    with raw.open("wb") as out:
        for starts, lengths in pieces:
            bins = pack(lengths - 1, capacity) if packs else [[piece] for piece in range(len(starts))]
            order = np.fromiter((piece for content in bins for piece in content), np.int64)
            out.write(np.stack([starts[order], lengths[order]], axis=1).tobytes())
            sizes.append(np.fromiter(map(len, bins), np.int64, len(bins)))
    found = np.memmap(raw, np.int64, "r").reshape(-1, 2) if raw.stat().st_size else np.empty((0, 2), np.int64)
    for file, values in ((_first_of(index), np.cumsum(np.concatenate(sizes))), (index, found)):
        temporary = file.with_name(f".tmp-{os.getpid()}-{file.name}")
        np.save(temporary, values)
        temporary.replace(file)
    raw.unlink()


def _first_of(index: Path) -> Path:
    return index.with_name(f"{index.stem}-first.npy")


def _pieces(
    ends: Sequence[NDArray[np.int64]], context_length: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yields start and number of tokens of pieces of documents; windows of a long one share a token."""
    for starts, stops in _documents(ends):
        windows = np.maximum(0, -(-(stops - starts - 1) // context_length))
        document = np.repeat(np.arange(len(starts)), windows)
        number = np.arange(len(document)) - np.repeat(np.cumsum(windows) - windows, windows)
        first = starts[document] + number * context_length
        if len(first):
            yield first, np.minimum(context_length + 1, stops[document] - first)


def _documents(ends: Sequence[NDArray[np.int64]]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yields starts and stops of documents in chunks."""
    for part, offset in ends_with_offsets(ends):
        for at in range(0, len(part), _CHUNK):
            stops = np.asarray(part[at : at + _CHUNK])
            before = part[at - 1] if at else 0
            yield np.concatenate([[before], stops[:-1]]) + offset, stops + offset


def ends_with_offsets(ends: Sequence[NDArray[np.int64]]) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Yields the ends of each shard's documents, and the number of tokens in the shards before it.

    Every shard ends with a document.
    """
    offset = 0
    for part in ends:
        yield part, offset
        offset += int(part[-1]) if len(part) else 0


def _counted(ends: Sequence[NDArray[np.int64]], context_length: int) -> tuple[int, int]:
    cut = dropped = 0
    for starts, stops in _documents(ends):
        cut += int(np.count_nonzero(stops - starts > context_length + 1))
        dropped += int(np.count_nonzero(stops - starts < 2))
    return cut, dropped
