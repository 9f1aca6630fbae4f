"""The directory of a training run."""

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from llm.checkpoint.atomic import COMPLETE, exclusive_lock, write_atomically
from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.weights import read_json
from llm.errors import CheckpointError, ConfigError
from llm.settings.merge import from_builtins
from llm.settings.run import RunConfig

_CHECKPOINTS = "checkpoints"
_LATEST = "latest"
_RUN_FILE = "run.json"


class Run(os.PathLike[str]):
    """`run.json`, `log.jsonl`, `loss.png`, `checkpoints/` and `latest` of one training run.

    `latest` names the newest complete checkpoint for scripts; this package looks at the markers themselves.

    Example:
        >>> from llm.checkpoint import Run
        >>> Run("no/run/here").checkpoints()
        []
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.log_file = self.path / "log.jsonl"
        self.plot_file = self.path / "loss.png"
        self.data = self.path / "data"
        self.tokenizer = self.path / "tokenizer"

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / _RUN_FILE).is_file()

    def create(self, config: RunConfig, facts: Mapping[str, Any]) -> None:
        """Begins a run where `check_free` found none: writes the config and facts about the run into `run.json`."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_config(config, facts)

    def check_free(self) -> None:
        """Checks that the directory holds no run yet.

        Raises:
            ConfigError: The directory holds a run.
        """
        if self.exists:
            raise ConfigError(
                f"{self.path} already holds a run\nhint: continue it with `--resume`, or choose another `--out`"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training in this directory; a killed process leaves no lock behind.

        Raises:
            ConfigError: Another process trains here, or the path is not a directory.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"`--out` must be a directory, got the file {self.path}")
        self.path.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self.path / ".lock") as holder:
            if holder is not None:
                raise ConfigError(
                    f"process {holder} is training in {self.path}\nhint: wait for it or stop it, then try again"
                )
            yield

    def write_config(self, config: RunConfig, facts: Mapping[str, Any]) -> None:
        """Replaces `run.json`."""
        content = {"config": msgspec.to_builtins(config), **facts}
        write_atomically(self.path / _RUN_FILE, json.dumps(content, indent=2) + "\n")

    def read_config(self) -> RunConfig:
        """The config the run was started with.

        Raises:
            CheckpointError: There is no run here, or its `run.json` can't be read.
        """
        if not self.exists:
            raise CheckpointError(
                f"no run to resume in {self.path}: it has no run.json\nhint: leave out `--resume` to start one"
            )
        return from_builtins(self._read().get("config", {}), RunConfig)

    def read_facts(self) -> dict[str, Any]:
        """What `run.json` says beside the config, such as the number of processes and threads."""
        return {name: value for name, value in self._read().items() if name != "config"}

    def _read(self) -> dict[str, Any]:
        return read_json(self.path / _RUN_FILE)

    def checkpoint(self, step: int) -> Checkpoint:
        """The checkpoint taken after `step` optimizer steps, whether it exists or not."""
        return Checkpoint(self.path / _CHECKPOINTS / f"step_{step:08d}")

    def checkpoints(self) -> list[Checkpoint]:
        """The complete checkpoints, oldest first."""
        found = map(Checkpoint, (self.path / _CHECKPOINTS).glob("step_*"))
        return sorted((entry for entry in found if entry.is_complete), key=step_of)

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint."""
        return next(reversed(self.checkpoints()), None)

    def publish(self, checkpoint: Checkpoint) -> None:
        """Points `latest` at `checkpoint`."""
        write_atomically(self.path / _LATEST, f"{_CHECKPOINTS}/{checkpoint.path.name}\n")

    def prune(self, keep: int) -> None:
        """Removes all but the `keep` newest checkpoints, and what a crash left half-made."""
        kept = {checkpoint.path for checkpoint in self.checkpoints()[-keep:]}
        for stale in set((self.path / _CHECKPOINTS).iterdir()) - kept:
            (stale / COMPLETE).unlink(missing_ok=True)  # first: half a directory must not look whole
            shutil.rmtree(stale)

    def rewind_log(self, step: int) -> None:
        """Drops lines of the log that a resumed run will write again, and one cut short by a crash."""
        if not self.log_file.is_file():
            return
        kept = [record for record in self.read_log() if record["step"] <= step]
        write_atomically(self.log_file, "".join(map(_log_line, kept)))

    def append_log(self, record: Mapping[str, Any]) -> None:
        """Adds one line to the log."""
        with self.log_file.open("a", encoding="utf-8") as log:
            log.write(_log_line(record))

    def read_log(self) -> list[dict[str, Any]]:
        """All whole lines of the log; one that a crash cut short is left out."""
        if not self.log_file.is_file():
            return []
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        records = (_read_record(line) for line in lines)
        return [record for record in records if record is not None]


def step_of(checkpoint: Checkpoint) -> int:
    """The optimizer step that a run's checkpoint was taken after; -1 for a directory of another name."""
    match = re.fullmatch(r"step_(\d+)", checkpoint.path.name)
    return int(match.group(1)) if match else -1


def _log_line(record: Mapping[str, Any]) -> str:
    """One line of JSON; a number that is not finite (JSON has none) is null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def _read_record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None
