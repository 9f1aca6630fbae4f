"""Samples of rows, with a mask of what is learnt."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm.data.packing import PackedPieces, write_index
from llm.data.shards import TokenStream
from llm.errors import DataError
from llm.settings.run import DataConfig
from llm.tokenization import TokenArray

# Rows among which the fullest combinations are sought.
_CHUNK = 1 << 16


class Rows(NamedTuple):
    """Consecutive rows of a source.

    Attributes:
        ids: The ids of all rows of the source.
        learnt: 1 for each token that is learnt, else 0.
        starts: Where each row starts in them, int64 `[N]`.
        lengths: Tokens of each row, int64 `[N]`.
        where: Returns where a row stands, for messages.
        margins: The margin of each row, fp32 `[N]`; empty if there are none.
    """

    ids: TokenStream
    learnt: TokenStream
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    where: Callable[[int], str]
    margins: NDArray[np.float32] = np.empty(0, np.float32)

    def part(self, first: int, last: int) -> "Rows":
        """Returns the rows from `first` to before `last`."""
        where = self.where
        starts, lengths, margins = self.starts[first:last], self.lengths[first:last], self.margins[first:last]
        return self._replace(starts=starts, lengths=lengths, margins=margins, where=lambda idx: where(first + idx))

    def row(self, idx: int) -> tuple[TokenArray, NDArray[np.bool_]]:
        """Returns ids and mask of a row."""
        places = slice(int(self.starts[idx]), int(self.starts[idx] + self.lengths[idx]))
        return self.ids[places], self.learnt[places].astype(np.bool_)


class RowSamples(PackedPieces):
    """Rows as samples: packed without one seeing another, or one a sample.

    Args:
        rows: The rows.
        context_length: Places of a sample.
        config: Whether rows are packed, and what happens to those that are too long.
        index: File that keeps which rows make up which sample; written if missing.

    Raises:
        DataError: A row is too long, or what is left of it after the cut teaches nothing.
    """

    def __init__(self, rows: Rows, context_length: int, config: DataConfig, index: Path) -> None:
        self.rows = rows
        self.num_too_long = int(np.count_nonzero(rows.lengths > context_length + 1))
        if not index.is_file():
            starts, lengths = _fitting(rows, context_length, config.too_long)
            chunks = range(0, len(starts), _CHUNK)
            pieces = ((starts[at : at + _CHUNK], lengths[at : at + _CHUNK]) for at in chunks)
            write_index(index, pieces, context_length, config.packing)
        super().__init__(rows.ids, index)
        self.filled = self.num_predicted / max(1, len(self) * context_length)

    def masks(self, idx: int) -> list[NDArray[np.bool_]]:
        """Returns which tokens of each row are learnt."""
        return [self.rows.learnt[start:stop].astype(np.bool_) for start, stop in self.places(idx)]


def _fitting(rows: Rows, context_length: int, too_long: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns starts and lengths of the rows that are left when the long ones are dropped or cut."""
    is_long = rows.lengths > context_length + 1
    if not is_long.any():
        return rows.starts, rows.lengths
    if too_long == "error":
        raise too_long_error(rows, is_long, context_length + 1)
    if too_long == "drop":
        return rows.starts[~is_long], rows.lengths[~is_long]
    check_cut(rows, is_long, context_length + 1)
    return rows.starts, np.minimum(rows.lengths, context_length + 1)


def too_long_error(rows: Rows, is_long: NDArray[np.bool_], limit: int, per_row: int = 1) -> DataError:
    """Returns the error about the first row longer than `limit` tokens; `per_row` sequences in `rows` are one row."""
    first = int(np.flatnonzero(is_long)[0])
    of_row = np.logical_or.reduceat(is_long, np.arange(0, len(is_long), per_row))
    return DataError(
        f"{rows.where(first)}: the row has {int(rows.lengths[first]):,} tokens, a sample has room for {limit:,}; "
        f"{int(of_row.sum()):,} of {len(of_row):,} rows are too long\n"
        "hint: `data.too_long=drop` leaves them out, `data.too_long=cut` cuts their ends off, or raise "
        "`data.context_length`"
    )


def check_cut(rows: Rows, is_long: NDArray[np.bool_], limit: int) -> None:
    """Checks that something of each long row is learnt once it is cut.

    Raises:
        DataError: Nothing of a row is.
    """
    for idx in np.flatnonzero(is_long).tolist():
        start = int(rows.starts[idx])
        if not rows.learnt[start + 1 : start + limit].any():
            raise DataError(
                f"{rows.where(idx)}: nothing is left to learn of the row when it is cut to {limit:,} tokens\n"
                "hint: `data.too_long=drop` leaves such rows out, or raise `data.context_length`"
            )
