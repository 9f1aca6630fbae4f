"""What a run has done so far, read from its directory."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from llm.checkpoint import Run, read_json, step_of, write_atomically
from llm.settings.run import RunConfig

State: TypeAlias = Literal["running", "finished", "stopped"]
_ABOUT = "about.json"


@dataclass(frozen=True)
class RunRecord:
    """A run as its files tell it.

    Attributes:
        run: The run.
        config: Its settings.
        log: All lines of its log.
        about: Facts that its last start wrote; empty for a run without them.
    """

    run: Run
    config: RunConfig
    log: list[dict[str, Any]]
    about: dict[str, Any]

    @classmethod
    def read(cls, run: Run) -> "RunRecord":
        """Reads a run.

        Raises:
            CheckpointError: The directory holds no run.
        """
        file = run.path / _ABOUT
        return cls(run, run.read_config(), run.read_log(), read_json(file) if file.is_file() else {})

    @property
    def name(self) -> str:
        """The name of the run's directory."""
        return self.run.path.resolve().name

    @cached_property
    def step(self) -> int:
        """Number of steps so far: that of the last line of the log or, if it is higher, of the newest checkpoint."""
        newest = self.run.newest()
        logged = max((line["step"] for line in self.log), default=0)
        return logged if newest is None else max(logged, step_of(newest))

    @property
    def total_steps(self) -> int | None:
        """Number of steps that the run is to take; None if unknown."""
        return self.about.get("total_steps") or self.config.training.max_steps

    @property
    def state(self) -> State:
        """Whether the run has reached its end, is in progress, or was stopped."""
        if self.total_steps is not None and self.step >= self.total_steps:
            return "finished"
        if self.log and self.log[-1].get("stopped_early"):
            return "finished"
        return "running" if self.run.is_locked else "stopped"

    def last(self, key: str) -> Any:
        """Returns the last value of the log under `key`; None if there is none."""
        return next((line[key] for line in reversed(self.log) if line.get(key) is not None), None)

    def best(self, key: str) -> float | None:
        """Returns the smallest number of the log under `key`; None if there is none."""
        return min((line[key] for line in self.log if line.get(key) is not None), default=None)


def write_about(run: Run, facts: Mapping[str, Any]) -> None:
    """Writes the facts that `RunRecord.about` reads."""
    write_atomically(Path(run.path) / _ABOUT, json.dumps(facts, indent=2) + "\n")
