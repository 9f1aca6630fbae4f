"""Ids of text that comes in blocks, and text of ids that come one by one, for tokenizers of any kind."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llm import _rust
from llm.tokenization.options import FlatIds

TokenArray: TypeAlias = NDArray[np.uint16] | NDArray[np.uint32]


class BlockIds(NamedTuple):
    """Ids of consecutive documents, and the index after each document that ends in them."""

    ids: TokenArray  # (T,), uint16 if every id of the tokenizer fits
    ends: NDArray[np.int64]  # (D,)


def slow_block_ids(
    encode: Callable[[list[str]], FlatIds], blocks: Sequence[_rust.TextBlock], end: Sequence[int], vocab_size: int
) -> BlockIds:
    """Encodes pieces of documents by way of Python's texts.

    Args:
        encode: Encodes texts.
        blocks: Pieces of consecutive documents.
        end: The ids after each document.
        vocab_size: Number of ids, which decides how wide an id is.
    """
    pieces = [piece for block in blocks for piece in block.pieces()]
    flat = encode([text for text, _ in pieces])
    ends = flat.offsets[1:][[ends for _, ends in pieces]]
    ids = np.insert(flat.ids, np.repeat(ends, len(end)), np.tile(np.array(end, np.uint32), len(ends)))
    ends = ends + len(end) * np.arange(1, len(ends) + 1)
    return BlockIds(ids.astype(np.uint16) if vocab_size <= 2**16 else ids, ends)


def parts_of(stream: _rust.TokenStream, ids: Iterable[int]) -> Iterator[str]:
    """Yields the text of ids in parts that are not empty and never end within a character."""
    for token_id in ids:
        part = stream.push(token_id)
        if part:
            yield part
    rest = stream.finish()
    if rest:
        yield rest
