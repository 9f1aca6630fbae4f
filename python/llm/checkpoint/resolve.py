"""Finds the checkpoint at a path."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.run import Run
from llm.errors import CheckpointError, LLMWarning
from llm.models import DecoderModel, RegressionModel

T = TypeVar("T")
_MAX_READS = 5
_POINTERS = ("latest", "best")  # files of a run


def given_name(path: str | os.PathLike[str]) -> str:
    """Returns the last part of a path as given: a symbolic link names the model, not what the link leads to."""
    return Path(os.path.abspath(path)).name


def resolve(path: str | os.PathLike[str], *, read: bool = True) -> Checkpoint:
    """Returns the checkpoint at `path`: a `Checkpoint`, directory or GGUF file itself, or a run's newest whole one.

    A run's files `latest` and `best` stand for the checkpoints that they name. A damaged checkpoint of a run is passed
    over in favour of an older one, with an `LLMWarning`, as when the run resumes.

    Args:
        path: A checkpoint, a run, or a run's `latest` or `best`.
        read: Whether to compare the content of a run's weights with what was written (about 1 GB/s); otherwise only
            the sizes of files are compared.

    Raises:
        CheckpointError: Nothing exists at `path`, or the run there has no whole checkpoint.
    """
    given = path if isinstance(path, Checkpoint) else Checkpoint(Path(path))
    if given.path.name in _POINTERS and given.path.is_file():
        given = Checkpoint(given.path.parent / given.path.read_text(encoding="utf-8").strip())
    if (given.path / "config.json").is_file() or given.is_gguf or given.is_adapter:
        return given
    if not given.path.is_dir():
        raise CheckpointError(
            f"no checkpoint at {str(path)!r}\nhint: pass a directory with a config.json, a run, or a .gguf file"
        )
    newest, damages = Run(given.path).whole_checkpoint(read=read, state=False)
    for damage in damages:
        warnings.warn(f"{damage}; using {newest}", LLMWarning, stacklevel=2)
    if newest is None:
        raise CheckpointError(
            f"{str(path)!r} holds neither a config.json nor a complete checkpoint under checkpoints/\n"
            "hint: pass a checkpoint or run directory, as made by `llm train --out DIR`"
        )
    return newest


def read_checkpoint(path: str | os.PathLike[str], read: Callable[[Checkpoint], T], *, needs_weights: bool = True) -> T:
    """Calls `read` with the checkpoint at `path` and returns the result of the call.

    Training may remove that checkpoint of a run meanwhile; the next call of `read` then gets the newest checkpoint.
    `prune` removes a checkpoint's marker first, so a marker that outlives the call proves that every file was there.

    Args:
        path: As in `resolve`.
        read: Reads what is wanted of the checkpoint.
        needs_weights: Whether `read` reads weights, whose content is then compared with what was written.

    Raises:
        CheckpointError: There is no checkpoint, or training removes each checkpoint before `read` returns.
    """
    for _ in range(_MAX_READS):
        checkpoint = resolve(path, read=needs_weights)
        is_of_run = checkpoint.path != Path(path)
        try:
            result = read(checkpoint)
        except Exception:
            if is_of_run and not checkpoint.is_complete:
                continue
            raise
        if not is_of_run or checkpoint.is_complete:
            return result
    raise CheckpointError(
        f"the run in {str(path)!r} removed {_MAX_READS} checkpoints during reading\n"
        "hint: raise `training.keep_checkpoints` or `training.checkpoint_every`, or pass a copy of a checkpoint"
    )


def load_model(
    path: str | os.PathLike[str], dtype: str = "auto", device: str | torch.device = "cpu"
) -> DecoderModel | RegressionModel:
    """Builds the model of a checkpoint or run, in eval mode; see `Checkpoint.model`."""
    return read_checkpoint(path, lambda checkpoint: checkpoint.model(dtype, device))
