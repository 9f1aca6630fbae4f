"""Byte-level BPE as the paper has it: slow, and short enough to check by eye.

Source: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016, algorithm 1.
"""

from collections import Counter
from itertools import pairwise

import regex

PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "cl100k": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s++$|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "whitespace": r"\s+|\S+",
}

Pair = tuple[int, int]


def train(
    texts: list[str], num_merges: int, pattern: str, min_frequency: int = 1, max_token_length: int | None = None
) -> list[Pair]:
    """The merges, in order; merge `i` makes id `256 + i`. The most frequent pair first, then the smaller pair.

    Args:
        min_frequency: A pair seen less often is not merged.
        max_token_length: A pair whose merged token would have more bytes is not merged.
    """
    words = [list(piece.encode()) for text in texts for piece in regex.findall(PATTERNS[pattern], text)]
    lengths = [1] * 256
    merges: list[Pair] = []
    for index in range(num_merges):
        counts = Counter(pair for word in words for pair in pairwise(word))
        allowed = [
            pair
            for pair, count in counts.items()
            if count >= min_frequency
            and (max_token_length is None or lengths[pair[0]] + lengths[pair[1]] <= max_token_length)
        ]
        if not allowed:
            break
        best = min(allowed, key=lambda pair: (-counts[pair], pair))
        words = [merge(word, best, 256 + index) for word in words]
        lengths.append(lengths[best[0]] + lengths[best[1]])
        merges.append(best)
    return merges


def encode(text: str, merges: list[Pair], pattern: str) -> list[int]:
    """The ids of `text`: every merge in order, wherever it applies, piece by piece."""
    ids: list[int] = []
    for piece in regex.findall(PATTERNS[pattern], text):
        word = list(piece.encode())
        for index, pair in enumerate(merges):
            word = merge(word, pair, 256 + index)
        ids.extend(word)
    return ids


def merge(word: list[int], pair: Pair, new_id: int) -> list[int]:
    """Replaces `pair` by `new_id`, from left to right."""
    merged: list[int] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] = new_id
        else:
            merged.append(symbol)
    return merged


def token_bytes(merges: list[Pair]) -> list[bytes]:
    """The bytes of each id."""
    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens
