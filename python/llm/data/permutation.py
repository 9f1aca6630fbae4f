"""A shuffle that is computed, not stored: any place of the order is found in constant time and memory."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llm.errors import InvalidArgumentError

_ROUNDS = 6
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def permuted(positions: NDArray[np.int64], size: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    """Returns the numbers at `positions` of the permutation of `range(size)` that `key` chooses.

    A Feistel network permutes the next power of four; a result outside the range goes through it again.

    Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, section 3, "cycle-walking cipher".

    Args:
        positions: int64 `[N]` in `[0, size)`.
        size: Length of the permutation.
        key: Any numbers, such as the seed and the epoch.

    Raises:
        InvalidArgumentError: A position is outside the range.
    """
    if len(positions) and (positions.min() < 0 or positions.max() >= size):
        raise InvalidArgumentError(f"positions must be in [0, {size}), got {positions.min()} to {positions.max()}")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    numbers = _feistel(positions.astype(np.uint64), half, key)
    outside = np.flatnonzero(numbers >= size)
    while len(outside):
        numbers[outside] = _feistel(numbers[outside], half, key)
        outside = outside[numbers[outside] >= size]
    return numbers.astype(np.int64)


def _feistel(numbers: NDArray[np.uint64], half: int, key: tuple[int, ...]) -> NDArray[np.uint64]:
    """Permutes numbers of `2 * half` bits; any round function gives a permutation."""
    mask, bits = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = numbers >> bits, numbers & mask
    for round_key in _round_keys(key):
        left, right = right, left ^ (_mixed(right + round_key) & mask)
    return (left << bits) | right


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer, whose every output bit depends on every input bit."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * _MIX[0]
    numbers = (numbers ^ (numbers >> np.uint64(27))) * _MIX[1]
    return numbers ^ (numbers >> np.uint64(31))


@lru_cache(maxsize=1024)
def _round_keys(key: tuple[int, ...]) -> tuple[np.uint64, ...]:
    return tuple(np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64))
