"""Prompts whose answers are drawn while training."""

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from llm.checkpoint.atomic import write_atomically
from llm.data.base import BaseDataModule, Dataset
from llm.data.batch import PromptBatch, PromptRow
from llm.data.readers import Row, corpus_files, read_rows
from llm.data.rows.messages import checked_turns, listed
from llm.errors import DataError
from llm.settings.run import DataConfig

_FILE = "prompts.jsonl"


def read_prompts(config: DataConfig) -> tuple[list[PromptRow], list[PromptRow]]:
    """Reads the rows of all files, without ids: those to train on, and those of `data.validation_paths`.

    Raises:
        DataError: There is no file, or a row has no prompt; the message names file and line.
    """
    found = []
    for paths in (config.paths, config.validation_paths):
        files = corpus_files(paths) if paths else []
        found.append([_prompt(row) for file in files for row in read_rows(file)])
    if not found[0]:
        raise DataError("no prompt was found\nhint: pass `--data FILE` (.jsonl or .parquet), a directory or a pattern")
    return found[0], found[1]


def _prompt(row: Row) -> PromptRow:
    fields = dict(row.values)
    given = [name for name in ("prompt", "messages") if fields.get(name) is not None]
    if len(given) != 1:
        there = ", ".join(f"`{name}`" for name in fields) or "none"
        raise DataError(f"{row.where}: a row must have the field `prompt` or `messages`; those there are {there}")
    value = fields.pop(given[0])
    try:
        prompt = value if isinstance(value, str) else checked_turns(listed(given[0], value))
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from None
    if not prompt or (not isinstance(prompt, str) and prompt[-1]["role"] == "assistant"):
        raise DataError(f"{row.where}: a prompt must end with what is to be answered, got {value!r}")
    return PromptRow(row.where, prompt, [], fields)


class PromptDataModule(BaseDataModule):
    """Prompts that `store` wrote into a run.

    Args:
        directory: The data of the run.
        config: How much is held out.

    Raises:
        DataError: The file is missing or damaged.
    """

    def __init__(self, directory: str | Path, config: DataConfig | None = None) -> None:
        self.file = Path(directory) / _FILE
        self.config = config or DataConfig()

    @staticmethod
    def store(directory: Path, train: Iterable[PromptRow], held_out: Iterable[PromptRow]) -> None:
        """Writes prompts with their ids."""
        content = {"train": list(train), "held_out": list(held_out)}
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / _FILE, json.dumps(msgspec.to_builtins(content)) + "\n")

    def train_dataset(self) -> Dataset:
        """Returns the prompts to train on."""
        return Prompts(self._parts[0][: self.config.num_samples])

    def validation_dataset(self) -> Dataset | None:
        """Returns the held-out prompts."""
        return Prompts(self._parts[1]) if self._parts[1] else None

    @cached_property
    def _parts(self) -> tuple[list[PromptRow], list[PromptRow]]:
        try:
            content = msgspec.json.decode(self.file.read_bytes(), type=dict[str, list[PromptRow]])
            train, held_out = content["train"], content["held_out"]
        except (OSError, KeyError, msgspec.DecodeError) as error:
            raise DataError(f"{self.file} is damaged or missing: {error}\nhint: start a new run") from error
        if held_out:
            return train, held_out
        border = len(train) - round(len(train) * self.config.validation_fraction)
        return train[:border], train[border:]


class Prompts(Dataset):
    """Prompts as samples."""

    def __init__(self, rows: list[PromptRow]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: NDArray[np.int64]) -> PromptBatch:
        """Returns the prompts at `indices`, in that order."""
        numbers = tuple(int(idx) for idx in indices)
        return PromptBatch(tuple(self.rows[idx] for idx in numbers), numbers)
