"""The directory of a training run."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from llm.checkpoint.adapters import CONFIG as ADAPTER_CONFIG
from llm.checkpoint.atomic import COMPLETE, exclusive_lock, is_locked, write_atomically
from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.lines import StepLines
from llm.checkpoint.removal import LOCK, STARTING, foreign_entries, remove_written, written_checkpoints
from llm.checkpoint.weights import read_json
from llm.errors import CheckpointError, ConfigError
from llm.settings.merge import from_builtins
from llm.settings.paths import check_directory
from llm.settings.run import RunConfig

_CHECKPOINTS = "checkpoints"
_LATEST = "latest"
_BEST = "best"
_RUN_FILE = "run.json"
# What makes a directory a checkpoint, for every command that reads one.
_MODEL_FILES = ("config.json", ADAPTER_CONFIG)


class Run(os.PathLike[str]):
    """The directory of one training run: `run.json`, `log.jsonl`, `loss.png`, `checkpoints/` and `latest`.

    `latest` names the newest complete checkpoint for scripts; this package reads the markers of the checkpoints.

    Example:
        >>> from llm.checkpoint import Run
        >>> Run("no/run/here").checkpoints()
        []

    Args:
        path: The directory.

    Raises:
        ConfigError: `path` is an empty text, which `Path` takes for the working directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not os.fspath(path):
            raise ConfigError(
                "a run's directory must have a name, got an empty one\nhint: `.` is the working directory"
            )
        self.path = Path(path)
        self.log_file = self.path / "log.jsonl"
        self.log = StepLines(self.log_file)
        self.samples = StepLines(self.path / "samples.jsonl")
        self.plot_file = self.path / "loss.png"
        self.report_file = self.path / "report.html"
        self.data = self.path / "data"
        self.tokenizer = self.path / "tokenizer"

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def exists(self) -> bool:
        """Whether the directory holds a run."""
        return (self.path / _RUN_FILE).is_file()

    def create(self, config: RunConfig, facts: Mapping[str, Any]) -> None:
        """Writes `run.json` with the config and facts about the run; call `make_free` first."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_config(config, facts)

    def check_free(self, overwrite: bool = False) -> None:
        """Checks that a new run may begin here; removes nothing.

        Raises:
            ConfigError: The directory holds checkpoints or a model, or `overwrite` is set and it holds no run.
        """
        if overwrite and not self.exists and (foreign := foreign_entries(self.path)):
            raise ConfigError(
                f"`overwrite` replaces runs only, and {self.path} holds none: {', '.join(foreign[:5])}\n"
                "hint: choose another `--out`"
            )
        model = next((name for name in _MODEL_FILES if (self.path / name).is_file()), None)
        if model is not None:
            raise ConfigError(
                f"{self.path} holds a model, with a {model}, which every command would read instead of the run\n"
                "hint: choose another `--out`"
            )
        if self.checkpoints() and not overwrite:
            what = "a run" if self.exists else "checkpoints of a run without its run.json"
            raise ConfigError(
                f"{self.path} already holds {what}\n"
                "hint: continue that run with `--resume`, replace it with `--overwrite`, or choose another `--out`"
            )

    def check_not_read(self, read: Iterable[Checkpoint | None]) -> None:
        """Checks that nothing that a new run reads lies in its directory, where it would be replaced.

        Raises:
            ConfigError: A checkpoint in `read`, or its base, is of this run; other files here stay, and may be read.
        """
        own = self.path.resolve()
        replaced = (own, own / _LATEST, own / _BEST, own / _CHECKPOINTS)
        for source in (path for one in read if one is not None for path in one.sources):
            place = source.resolve()
            if place in replaced or place.is_relative_to(own / _CHECKPOINTS):
                raise ConfigError(
                    f"`--out` must not be where the run's own source lies, got {self.path} for {os.fspath(source)}\n"
                    "hint: choose another `--out`"
                )

    def make_free(self, overwrite: bool = False) -> str | None:
        """Makes room for a new run; removes an old one if `overwrite` is set or if it has no checkpoint to resume.

        Only what a run writes is removed. Keep the run locked meanwhile.

        Returns:
            What the user should know; None if there was no run.

        Raises:
            ConfigError: As in `check_free`.
        """
        self.check_free(overwrite)
        if not self.exists and not overwrite:
            return None
        checkpoints, had_run = self.checkpoints(), self.exists
        remove_written(self.path)
        if not had_run:
            return None
        return "replaced the old run" if checkpoints else "the earlier start stopped before its first checkpoint"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training in this directory; a killed process leaves no lock behind.

        A directory that did not exist, and in which nothing was written, does not exist afterwards.

        Raises:
            ConfigError: Another process trains in the directory, or the path is not a directory.
        """
        check_directory("--out", self.path)
        is_new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self.path / LOCK) as holder:
            if holder is not None:
                raise ConfigError(
                    f"process {holder} is training in {self.path}\nhint: wait until that process ends, or stop it"
                )
            try:
                yield
            finally:
                # Windows keeps a file that is open, and another process may be about to begin here.
                with contextlib.suppress(OSError):
                    if is_new and [entry.name for entry in self.path.iterdir()] == [LOCK]:
                        (self.path / LOCK).unlink()
                        self.path.rmdir()

    @contextlib.contextmanager
    def starting(self) -> Iterator["Run"]:
        """Yields a run in a folder of its own, in which tokenizer and data are prepared; `take_over` moves them here.

        What is here stays as it was until then. The folder is removed at the end.
        """
        folder = self.path / STARTING
        shutil.rmtree(folder, ignore_errors=True)
        try:
            yield Run(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def take_over(self, prepared: "Run", overwrite: bool = False) -> str | None:
        """Makes room as `make_free` does, then moves data and tokenizer of `prepared` here; returns what that says."""
        said = self.make_free(overwrite)
        for source, target in ((prepared.data, self.data), (prepared.tokenizer, self.tokenizer)):
            for entry in source.iterdir() if source.is_dir() else ():
                target.mkdir(exist_ok=True)
                entry.replace(target / entry.name)
        return said

    @property
    def is_locked(self) -> bool:
        """Whether a process trains in the directory."""
        return is_locked(self.path / LOCK)

    def write_config(self, config: RunConfig, facts: Mapping[str, Any]) -> None:
        """Replaces `run.json`."""
        content = {"config": msgspec.to_builtins(config), **facts}
        write_atomically(self.path / _RUN_FILE, json.dumps(content, indent=2) + "\n")

    def write_resumed(self, config: RunConfig, facts: Mapping[str, Any], step: int) -> None:
        """Replaces the config in `run.json` and appends the facts of a resumption at `step` to its history."""
        content = self._read()
        history = [*content.get("history", []), {"step": step, **facts}]
        write_atomically(
            self.path / _RUN_FILE,
            json.dumps(content | {"config": msgspec.to_builtins(config), "history": history}, indent=2) + "\n",
        )

    def last_facts(self) -> dict[str, Any]:
        """Returns the facts that `run.json` holds about the newest start or resumption."""
        history = self.read_history()
        return history[-1] if history else {key: value for key, value in self._read().items() if key != "config"}

    def read_history(self) -> list[dict[str, Any]]:
        """Returns the facts of each resumption, its `step` among them."""
        history: list[dict[str, Any]] = self._read().get("history", [])
        return history

    def read_config(self) -> RunConfig:
        """Reads the config of the run from `run.json`.

        Raises:
            CheckpointError: The directory holds no run, or `run.json` can't be read.
        """
        if not self.exists:
            raise CheckpointError(
                f"no run to resume in {self.path}: it has no run.json\nhint: leave out `--resume` to start one"
            )
        return from_builtins(self._read().get("config", {}), RunConfig)

    def _read(self) -> dict[str, Any]:
        return read_json(self.path / _RUN_FILE)

    def checkpoint(self, step: int) -> Checkpoint:
        """Returns the checkpoint for `step` optimizer steps, which may not exist yet."""
        return Checkpoint(self.path / _CHECKPOINTS / f"step_{step:08d}")

    def checkpoints(self) -> list[Checkpoint]:
        """Returns the complete checkpoints, oldest first."""
        found = map(Checkpoint, (self.path / _CHECKPOINTS).glob("step_*"))
        return sorted((entry for entry in found if entry.is_complete), key=step_of)

    def newest(self) -> Checkpoint | None:
        """Returns the newest complete checkpoint, or `None` before the first."""
        return next(reversed(self.checkpoints()), None)

    def whole_checkpoint(
        self, step: int | None = None, *, read: bool = True, state: bool = True
    ) -> tuple[Checkpoint | None, list[str]]:
        """Returns the newest undamaged checkpoint and what is wrong with newer ones; None if there is no checkpoint.

        Args:
            step: The step of the checkpoint to take; None takes the newest.
            read: See `Checkpoint.damage`.
            state: See `Checkpoint.damage`.

        Raises:
            CheckpointError: The checkpoint of that step is damaged, or all are.
        """
        damages: list[str] = []
        for checkpoint in reversed(self.checkpoints()):
            if step is not None and step_of(checkpoint) != step:
                continue
            damage = checkpoint.damage(read=read, state=state)
            # Training may have removed it meanwhile, which is no damage.
            if damage is None or not checkpoint.is_complete:
                return checkpoint, damages
            damages.append(f"{checkpoint.path.name} is damaged: {damage}")
        if damages:
            raise CheckpointError(f"no checkpoint in {self.path} is whole: {'; '.join(damages)}\nhint: start a new run")
        return None, []

    def publish(self, checkpoint: Checkpoint) -> None:
        """Points `latest` at `checkpoint`."""
        write_atomically(self.path / _LATEST, f"{_CHECKPOINTS}/{checkpoint.path.name}\n")

    def publish_best(self, checkpoint: Checkpoint) -> None:
        """Points `best` at `checkpoint`, which `prune` keeps from then on."""
        write_atomically(self.path / _BEST, f"{_CHECKPOINTS}/{checkpoint.path.name}\n")

    def best(self) -> Checkpoint | None:
        """Returns the checkpoint that `best` points at, or `None` if there is none."""
        file = self.path / _BEST
        found = Checkpoint(self.path / file.read_text(encoding="utf-8").strip()) if file.is_file() else None
        return found if found is not None and found.is_complete else None

    def prune(self, keep: int) -> None:
        """Removes all but the best and the `keep` newest checkpoints, and directories that a crash left incomplete."""
        best = self.best()
        kept = {checkpoint.path for checkpoint in [*self.checkpoints()[-keep:], *([best] if best else [])]}
        for stale in set(written_checkpoints(self.path)) - kept:
            (stale / COMPLETE).unlink(missing_ok=True)  # first: half a directory must not look whole
            shutil.rmtree(stale)

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints after `step` and points `latest` at the newest that is left."""
        for checkpoint in self.checkpoints():
            if step_of(checkpoint) > step:
                (checkpoint.path / COMPLETE).unlink()  # first: half a directory must not look whole
                shutil.rmtree(checkpoint.path)
        if (newest := self.newest()) is not None:
            self.publish(newest)
        if self.best() is None:
            (self.path / _BEST).unlink(missing_ok=True)

    def rewind_log(self, step: int) -> None:
        """Removes the lines after `step`, which a resumed run writes again, and a line cut short by a crash."""
        self.log.rewind(step)

    def append_log(self, record: Mapping[str, Any]) -> None:
        """Appends one line to the log."""
        self.log.append(record)

    def read_log(self) -> list[dict[str, Any]]:
        """Reads all complete lines of the log; a line cut short by a crash is skipped."""
        return self.log.read()


def step_of(checkpoint: Checkpoint) -> int:
    """Returns the number of optimizer steps in the checkpoint's name, or -1 for a different kind of name."""
    match = re.fullmatch(r"step_(\d+)", checkpoint.path.name)
    return int(match.group(1)) if match else -1
