"""Tensors on their way to a file: written as they come, read back mapped."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}
_HEADER_ALIGNMENT = 8


class _Place(NamedTuple):
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + int(np.prod(self.shape)) * self.dtype.itemsize


class Spool(Mapping[str, Tensor]):
    """A file of tensors that grows; memory holds none of them."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file
        self._places: dict[str, _Place] = {}
        self._size = 0

    @classmethod
    @contextmanager
    def at(cls, path: Path) -> Iterator["Spool"]:
        """Yields a new spool in a file that is removed on exit."""
        try:
            with path.open("wb") as file:
                yield cls(path, file)
        finally:
            path.unlink(missing_ok=True)

    def add(self, name: str, tensor: Tensor) -> None:
        """Appends a tensor."""
        place = _Place(self._size, tensor.dtype, tuple(tensor.shape))
        self._file.write(_content(tensor))
        self._places[name], self._size = place, place.stop

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        self._file.flush()
        content = np.memmap(self._path, np.uint8, "c", place.start, (place.stop - place.start,))
        return torch.from_numpy(content).view(place.dtype).view(place.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def write_safetensors(self, target: Path) -> None:
        """Writes all tensors as a safetensors file.

        Source: huggingface/safetensors README, "Format".
        """
        # Wide types first, as the library does, so that each tensor is aligned.
        names = sorted(self._places, key=lambda name: -self._places[name].dtype.itemsize)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        start = 0
        for name in names:
            place = self._places[name]
            stop = start + place.stop - place.start
            header[name] = {"dtype": _NAMES[place.dtype], "shape": place.shape, "data_offsets": [start, stop]}
            start = stop
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _HEADER_ALIGNMENT)
        with target.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                file.write(_content(self[name]))


def _content(tensor: Tensor) -> Any:
    """Returns the bytes of a tensor as a buffer."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
