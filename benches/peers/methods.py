"""What a contender can do. What it has no call for is None: it is left out of those rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Methods:
    """The calls of one tokenizer, each the fastest the package offers for that kind of output.

    Batches to arrays give a list of arrays, or all ids and the offsets of each text.
    """

    encode_list: Callable[[str], list[int]] | None = None
    encode_array: Callable[[str], Any] | None = None
    batch_list: Callable[[list[str]], list[list[int]]] | None = None
    batch_array: Callable[[list[str]], Any] | None = None
    decode_list: Callable[[list[int]], str] | None = None
    decode_array: Callable[[Any], str] | None = None
