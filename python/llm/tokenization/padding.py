"""Padding of rows of ids into one array."""

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from llm.errors import InvalidArgumentError
from llm.tokenization.options import FlatIds, PadOptions, check_names, length, side


class PaddedBatch(TypedDict):
    """Padded arrays under `transformers` names; `torch.from_numpy` converts them without a copy."""

    input_ids: NDArray[np.int64]  # (B, T)
    attention_mask: NDArray[np.int64]  # (B, T): 1 for a token of the text, 0 for padding


def pad_flat(rows: FlatIds, pad_id: int, options: PadOptions) -> PaddedBatch:
    """Pads rows with `pad_id` to one length.

    Args:
        rows: B rows of ids, of any lengths; none gives (0, 0).
        pad_id: What to fill up with.
        options: See `PadOptions`; its `pad_id` is not looked at.

    Raises:
        InvalidArgumentError: A row is longer than `pad_to_length`, or a value is outside what is allowed.
        TypeError: An unknown option.
    """
    check_names(options, PadOptions)
    lengths = np.diff(rows.offsets)  # (B,)
    columns = np.arange(_row_length(lengths, options))  # (T,)
    if side("padding_side", options.get("padding_side", "right")) == "left":
        columns = columns[::-1]
    is_token = columns < lengths[:, None]  # (B, T)
    input_ids = np.full(is_token.shape, pad_id, dtype=np.int64)  # (B, T)
    # A mask takes values row by row from left to right, so ids keep their order on either side.
    input_ids[is_token] = rows.ids
    return {"input_ids": input_ids, "attention_mask": is_token.astype(np.int64)}


def _row_length(lengths: NDArray[np.int64], options: PadOptions) -> int:
    longest = int(lengths.max(initial=0))
    wanted = length("pad_to_length", options.get("pad_to_length"))
    if wanted is not None and longest > wanted:
        raise InvalidArgumentError(
            f"rows must have `pad_to_length` ({wanted}) ids at most, got {longest} in row {int(lengths.argmax())}\n"
            "hint: `max_length` cuts a text when it is encoded"
        )
    multiple = length("pad_to_multiple_of", options.get("pad_to_multiple_of")) or 1
    return -(-(longest if wanted is None else wanted) // multiple) * multiple
