"""Pads rows of ids to one array."""

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from llm.errors import InvalidArgumentError
from llm.tokenization.options import FlatIds, PadOptions, check_names, length, side


class PaddedBatch(TypedDict):
    """Padded arrays with the names of `transformers`; `torch.from_numpy` converts them without a copy."""

    input_ids: NDArray[np.int64]  # (B, T)
    attention_mask: NDArray[np.int64]  # (B, T): 1 for a token of the text, 0 for padding


def pad_flat(rows: FlatIds, pad_id: int, options: PadOptions) -> PaddedBatch:
    """Returns rows of ids padded to one length with `pad_id`, and their mask.

    Args:
        rows: B rows of ids of any lengths; for B = 0 the arrays have shape (0, 0).
        pad_id: The id to pad with.
        options: Padding options; see `PadOptions`. Its `pad_id` is ignored.

    Raises:
        InvalidArgumentError: A row is longer than `pad_to_length`, or a value is out of range.
        TypeError: An option is unknown.
    """
    check_names(options, PadOptions)
    lengths = np.diff(rows.offsets)  # (B,)
    columns = np.arange(_row_length(lengths, options))  # (T,)
    if side("padding_side", options.get("padding_side", "right")) == "left":
        columns = columns[::-1]
    is_token = columns < lengths[:, None]  # (B, T)
    input_ids = np.full(is_token.shape, pad_id, dtype=np.int64)  # (B, T)
    # A mask assigns values row by row from left to right, so ids keep their order with padding on either side.
    input_ids[is_token] = rows.ids
    return {"input_ids": input_ids, "attention_mask": is_token.astype(np.int64)}


def _row_length(lengths: NDArray[np.int64], options: PadOptions) -> int:
    longest = int(lengths.max(initial=0))
    wanted = length("pad_to_length", options.get("pad_to_length"))
    if wanted is not None and longest > wanted:
        raise InvalidArgumentError(
            f"rows must have at most `pad_to_length` ({wanted}) ids, got {longest} in row {int(lengths.argmax())}\n"
            "hint: set `max_length` to truncate texts when they are encoded"
        )
    multiple = length("pad_to_multiple_of", options.get("pad_to_multiple_of")) or 1
    return -(-(longest if wanted is None else wanted) // multiple) * multiple
