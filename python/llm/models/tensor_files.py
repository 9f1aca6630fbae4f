"""Reads the weights of a checkpoint tensor by tensor, from one file or many."""

import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llm.errors import CheckpointError
from llm.tokenization.files import raise_if_stand_in

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "model.pt")
_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
# A file is opened anew after this many bytes, so that tensors that were read leave memory.
MAPPED_BYTES = 64 << 20


class OnDisk(Protocol):
    """A tensor that has not been read."""

    @property
    def shape(self) -> Sequence[int]:
        """Returns the sizes of the tensor."""

    @property
    def type_name(self) -> str:
        """Returns the name of the number type in the file."""

    def load(self, dtype: torch.dtype | None = None) -> Tensor:
        """Reads the tensor: mapped, in the type on disk, or computed in `dtype` where values are quantized."""


@dataclass(frozen=True)
class _Entry:
    """A tensor of a safetensors file."""

    name: str
    shape: Sequence[int]
    type_name: str
    file: Path
    files: "TensorFiles"

    def load(self, dtype: torch.dtype | None = None) -> Tensor:
        del dtype
        return self.files.read(self.file, self.name)


@dataclass(frozen=True)
class _Unpickled:
    """A tensor of a file that PyTorch has mapped."""

    tensor: Tensor

    @property
    def shape(self) -> Sequence[int]:
        return self.tensor.shape

    @property
    def type_name(self) -> str:
        return _TYPES.get(self.tensor.dtype, str(self.tensor.dtype).removeprefix("torch."))

    def load(self, dtype: torch.dtype | None = None) -> Tensor:
        del dtype
        return self.tensor


class TensorFiles(Mapping[str, OnDisk]):
    """Maps the names of a directory's tensors to the tensors on disk.

    Raises:
        CheckpointError: No weights, only pickled weights, or a file that is missing, truncated or not safetensors.
    """

    def __init__(self, directory: Path) -> None:
        self._found: dict[str, OnDisk] = {}
        self._open: Any = None
        self._opened: Path | None = None
        self._mapped = 0
        for file, names in _files(directory):
            with _opened(file) as tensors:
                present = list(tensors.keys())
                missing = sorted(names.difference(present))
                if missing:
                    raise CheckpointError(f"{file} lacks what {INDEX} promises: {', '.join(missing)}")
                for name in present:
                    part = tensors.get_slice(name)
                    self._found[name] = _Entry(name, part.get_shape(), part.get_dtype(), file, self)

    def __getitem__(self, name: str) -> OnDisk:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def read(self, file: Path, name: str) -> Tensor:
        """Reads one tensor, mapped."""
        if self._opened != file or self._mapped > MAPPED_BYTES:
            self._open, self._opened, self._mapped = _opened(file), file, 0
        tensor: Tensor = self._open.get_tensor(name)
        self._mapped += tensor.nbytes
        return tensor


def open_tensors(directory: Path) -> Mapping[str, OnDisk]:
    """Opens the weights of a checkpoint directory: safetensors if there are any, else pickled tensors.

    Older checkpoints (`pytorch_model.bin`, one or many, or `model.pt`) are read without running code.

    Raises:
        CheckpointError: A file is missing, truncated, or contains more than tensors in plain containers.
    """
    _refuse_adapter(directory)
    has_safetensors = (directory / SINGLE).is_file() or (directory / INDEX).is_file()
    for name in () if has_safetensors else PICKLED:
        if (directory / name).is_file():
            return _unpickled(directory / name)
        index = directory / f"{name}.index.json"
        if index.is_file():
            return {name: found for file, _ in _indexed(index) for name, found in _unpickled(file).items()}
    return TensorFiles(directory)


def _refuse_adapter(directory: Path) -> None:
    """Raises an error for a directory of PEFT, which contains changes to another model's weights."""
    config = directory / "adapter_config.json"
    if config.is_file():
        try:
            values = json.loads(config.read_text(encoding="utf-8"))
            base = values.get("base_model_name_or_path")
        except (ValueError, AttributeError, RecursionError):
            base = None
        raise CheckpointError(
            f"{directory} holds an adapter of {base or 'another model'}, not a whole model\n"
            "hint: `llm merge ADAPTER --out DIR` writes a whole model"
        )


def _unpickled(file: Path) -> dict[str, OnDisk]:
    try:
        values = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise_if_stand_in(file, CheckpointError)
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f", {named.group(1)} among them" if named else ""
        raise CheckpointError(
            f"{file} holds more than tensors{what}, and opening that could run code\n"
            "hint: convert the file to safetensors where you trust it"
        ) from None
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        raise_if_stand_in(file, CheckpointError)
        raise CheckpointError(f"{file} is truncated or no file of PyTorch: {str(error).splitlines()[0]}") from error
    if isinstance(values, dict) and isinstance(values.get("model"), dict):
        values = values["model"]
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise CheckpointError(f"{file} must hold tensors by name, got {type(values).__name__} with other values")
    # Trainers that wrap or compile a model leave these in front of its names.
    clean = (str(name).removeprefix("module.").removeprefix("_orig_mod.") for name in values)
    return {name: _Unpickled(value) for name, value in zip(clean, values.values(), strict=True)}


def _files(directory: Path) -> list[tuple[Path, set[str]]]:
    """Returns each file and the tensor names that the index assigns to it."""
    if (directory / SINGLE).is_file() or not (directory / INDEX).is_file():
        return [(_existing(directory / SINGLE), set())]
    return _indexed(directory / INDEX)


def _indexed(index: Path) -> list[tuple[Path, set[str]]]:
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        by_file: dict[str, set[str]] = {}
        for name, file in places.items():
            by_file.setdefault(file, set()).add(name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise_if_stand_in(index, CheckpointError)
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
        raise_if_stand_in(file, CheckpointError)
        raise CheckpointError(
            f"{file} is truncated or not a safetensors file ({file.stat().st_size} bytes): {error}\n"
            "hint: copy the checkpoint again, or use an older one of the run"
        ) from error
