"""Lengths of documents, counted in powers of two."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

_WIDTH = 40


def histogram(lengths: Iterable[NDArray[np.int64]]) -> Iterator[tuple[int, int, int, str]]:
    """Yields the first and last length of each class, the number of documents in it, and a bar for it.

    Args:
        lengths: Tokens of each document, int64 `[N]`, in parts.
    """
    counts = np.zeros(64, np.int64)
    for part in lengths:
        classes = np.log2(np.maximum(1, part)).astype(np.int64)
        counts += np.bincount(classes, minlength=64)
    used = np.flatnonzero(counts)
    for power in range(int(used[0]), int(used[-1]) + 1) if len(used) else ():
        count = int(counts[power])
        yield 2**power, 2 ** (power + 1) - 1, count, "█" * round(_WIDTH * count / int(counts.max()))
