"""The weights of a checkpoint, in one file or many, read tensor by tensor."""

import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llm.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "model.pt")
# What may stay mapped: a file is opened anew after this many bytes, so that what was read leaves memory.
MAPPED_BYTES = 64 << 20


@dataclass(frozen=True)
class OnDisk:
    """Where a tensor lies, and its sizes."""

    file: Path
    shape: torch.Size


class TensorFiles(Mapping[str, OnDisk]):
    """Names and shapes of all tensors of a directory; `load` reads one.

    Raises:
        CheckpointError: No weights, only pickled ones, a file that is missing, truncated or not safetensors.
    """

    def __init__(self, directory: Path) -> None:
        self._found: dict[str, OnDisk] = {}
        self._open: Any = None
        self._opened: Path | None = None
        self._mapped = 0
        for file, names in _files(directory):
            with _opened(file) as tensors:
                present = set(tensors.keys())
                missing = sorted(names - present)
                if missing:
                    raise CheckpointError(f"{file} lacks what {INDEX} promises: {', '.join(missing)}")
                for name in present:
                    self._found[name] = OnDisk(file, torch.Size(tensors.get_slice(name).get_shape()))

    def __getitem__(self, name: str) -> OnDisk:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def load(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor as it is on disk, mapped; `dtype` is left to whoever copies it."""
        del dtype
        file = self._found[name].file
        if self._opened != file or self._mapped > MAPPED_BYTES:
            self._open, self._opened, self._mapped = _opened(file), file, 0
        tensor: Tensor = self._open.get_tensor(name)
        self._mapped += tensor.nbytes
        return tensor


class PickledTensors(Mapping[str, Tensor]):
    """The tensors of older checkpoints (`pytorch_model.bin`, one or many, or `model.pt`), read without running code.

    Raises:
        CheckpointError: A file is missing, truncated, or holds anything but tensors in plain containers.
    """

    def __init__(self, files: list[Path]) -> None:
        self._found: dict[str, Tensor] = {}
        for file in files:
            self._found |= _unpickled(file)

    def __getitem__(self, name: str) -> Tensor:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def load(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor as it is on disk, mapped; `dtype` is left to whoever copies it."""
        del dtype
        return self._found[name]


def open_tensors(directory: Path) -> TensorFiles | PickledTensors:
    """The weights of a checkpoint's directory: safetensors where there are any, else pickled tensors.

    Raises:
        CheckpointError: As in the class that reads them.
    """
    has_safetensors = (directory / SINGLE).is_file() or (directory / INDEX).is_file()
    for name in () if has_safetensors else PICKLED:
        if (directory / name).is_file():
            return PickledTensors([directory / name])
        index = directory / f"{name}.index.json"
        if index.is_file():
            return PickledTensors([file for file, _ in _indexed(index)])
    return TensorFiles(directory)


def _unpickled(file: Path) -> dict[str, Tensor]:
    try:
        values = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than tensors, and opening that could run code: {str(error).splitlines()[0]}\n"
            "hint: convert it to safetensors where you trust it"
        ) from error
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{file} is truncated or no file of PyTorch: {str(error).splitlines()[0]}") from error
    if isinstance(values, dict) and isinstance(values.get("model"), dict):
        values = values["model"]
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise CheckpointError(f"{file} must hold tensors by name, got {type(values).__name__} with other values")
    # Trainers that wrap or compile a model leave these in front of its names.
    return {str(name).removeprefix("module.").removeprefix("_orig_mod."): value for name, value in values.items()}


def _files(directory: Path) -> list[tuple[Path, set[str]]]:
    """Each file and the names that the index puts there."""
    if (directory / SINGLE).is_file() or not (directory / INDEX).is_file():
        return [(_existing(directory / SINGLE), set())]
    return _indexed(directory / INDEX)


def _indexed(index: Path) -> list[tuple[Path, set[str]]]:
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        by_file: dict[str, set[str]] = {}
        for name, file in places.items():
            by_file.setdefault(file, set()).add(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} must be a JSON object with a `weight_map`: {error}") from None
    outside = sorted(file for file in by_file if Path(file).name != file)
    if outside:
        raise CheckpointError(f"{index} must name files beside it, got {', '.join(outside)}")
    return [(_existing(index.parent / file), names) for file, names in sorted(by_file.items())]


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing\nhint: copy the whole checkpoint directory")
    return file


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is truncated or not a safetensors file ({file.stat().st_size} bytes): {error}\n"
            "hint: copy the checkpoint again, or use an older one of the run"
        ) from error
