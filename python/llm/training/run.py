"""The directory of a training run."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from llm.checkpoint import CHECKPOINTS, COMPLETE, LATEST, newest_checkpoint, read_json, step_of, write_atomically
from llm.errors import CheckpointError, ConfigError
from llm.settings.merge import from_builtins
from llm.settings.run import RunConfig

_MAY_CHANGE = {  # of the section `training`
    "epochs",
    "max_steps",
    "device",
    "log_every",
    "validate_every",
    "checkpoint_every",
    "keep_checkpoints",
}


class RunDirectory:
    """`run.json`, `log.jsonl`, `loss.png`, `checkpoints/` and `latest` of one run.

    `latest` names the newest complete checkpoint for scripts; this package looks at the markers themselves.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log_file = path / "log.jsonl"
        self.plot_file = path / "loss.png"
        self.data = path / "data"

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / "run.json").is_file()

    def create(self, config: RunConfig, facts: Mapping[str, Any]) -> None:
        """Writes `run.json`: the config, then facts about the run.

        Raises:
            ConfigError: A run is here already, or something that is not a directory.
        """
        self.check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_config(config, facts)

    def check_free(self) -> None:
        """Raises unless a run can begin here.

        Raises:
            ConfigError: A run is here already, or something that is not a directory.
        """
        if self.exists:
            raise ConfigError(
                f"{self.path} already holds a run\nhint: continue it with `--resume`, or choose another `--out`"
            )
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"`--out` must be a directory, got the file {self.path}")

    def write_config(self, config: RunConfig, facts: Mapping[str, Any]) -> None:
        """Replaces `run.json`."""
        content = {"config": msgspec.to_builtins(config), **facts}
        write_atomically(self.path / "run.json", json.dumps(content, indent=2) + "\n")

    def read_config(self) -> RunConfig:
        """The config the run was started with.

        Raises:
            CheckpointError: There is no run here, or its `run.json` can't be read.
        """
        if not self.exists:
            raise CheckpointError(
                f"no run to resume in {self.path}: it has no run.json\nhint: leave out `--resume` to start one"
            )
        return from_builtins(read_json(self.path / "run.json").get("config", {}), RunConfig)

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint taken after `step` optimizer steps lives."""
        return self.path / CHECKPOINTS / f"step_{step:08d}"

    def publish(self, checkpoint: Path, keep: int) -> None:
        """Points `latest` at `checkpoint` and removes all but the `keep` newest ones."""
        write_atomically(self.path / LATEST, f"{CHECKPOINTS}/{checkpoint.name}\n")
        complete = [entry for entry in checkpoint.parent.glob("step_*") if (entry / COMPLETE).is_file()]
        kept = set(sorted(complete, key=step_of)[-keep:])
        for stale in set(checkpoint.parent.iterdir()) - kept:  # older ones, and what a crash left half-made
            (stale / COMPLETE).unlink(missing_ok=True)  # first: half a directory must not look whole
            shutil.rmtree(stale)

    def newest(self) -> Path | None:
        """The newest complete checkpoint."""
        return newest_checkpoint(self.path)

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


def check_resumable(old: RunConfig, new: RunConfig) -> None:
    """Raises when `new` changes a setting that would make the continued run another run.

    Raises:
        ConfigError: The setting, its two values and what may change are named.
    """
    before, after = msgspec.to_builtins(old), msgspec.to_builtins(new)
    for section, fields in after.items():
        for field, value in fields.items():
            if value != before[section][field] and not (section == "training" and field in _MAY_CHANGE):
                allowed = ", ".join(f"training.{name}" for name in sorted(_MAY_CHANGE))
                raise ConfigError(
                    f"`{section}.{field}` can't change on resume: the run has {before[section][field]!r}, "
                    f"got {value!r}\nhint: start a new run, or change only {allowed}"
                )
