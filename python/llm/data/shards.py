"""Token ids on disk, memory-mapped."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm.checkpoint import read_json
from llm.errors import DataError


def write_shard(file: Path, pieces: Iterable[NDArray[np.uint32]], vocab_size: int) -> int:
    """Writes token ids to `file` and returns their number.

    The file appears under its name only once it is complete; the `.json` beside it records the number type.
    """
    dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".tmp-{file.name}")
    num_tokens = 0
    with temporary.open("wb") as out:
        for piece in pieces:
            out.write(piece.astype(dtype).tobytes())
            num_tokens += len(piece)
    temporary.replace(file)
    meta = {"dtype": dtype.name, "num_tokens": num_tokens, "vocab_size": vocab_size}
    file.with_suffix(".json").write_text(json.dumps(meta) + "\n")
    return num_tokens


def open_shard(file: Path) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """Memory-maps a shard's ids, read-only.

    Raises:
        DataError: The shard is missing, or its size differs from the recorded one.
    """
    meta_file = file.with_suffix(".json")
    if not file.is_file() or not meta_file.is_file():
        raise DataError(f"no token shard at {file}\nhint: start the run anew")
    meta = read_json(meta_file)
    if not {"dtype", "num_tokens"} <= meta.keys():
        raise DataError(f"{meta_file} doesn't describe a token shard\nhint: start the run anew")
    dtype = np.dtype(meta["dtype"])
    if file.stat().st_size != meta["num_tokens"] * dtype.itemsize:
        raise DataError(
            f"{file} must have {meta['num_tokens'] * dtype.itemsize} bytes, got {file.stat().st_size}\n"
            "hint: it was changed or torn; start the run anew"
        )
    if meta["num_tokens"] == 0:
        return np.empty(0, dtype)
    return np.memmap(file, dtype=dtype, mode="r")
