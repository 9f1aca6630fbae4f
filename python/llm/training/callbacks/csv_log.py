"""The log of a run as a table."""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from llm.checkpoint import Checkpoint, Run, write_atomically
from llm.training.callbacks.base import Callback


class CsvLogger(Callback):
    """Writes `log.csv` at each validation and checkpoint and at the end: a row for each line of `log.jsonl`."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_validation_end(self, step: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        """Writes the table so far."""
        self._write()

    def on_checkpoint(self, step: int, checkpoint: Checkpoint) -> None:  # noqa: ARG002
        """Writes the table so far."""
        self._write()

    def on_fit_end(self) -> None:
        """Writes the whole table."""
        self._write()

    def _write(self) -> None:
        rows = [dict(numbers(line)) for line in self.run.read_log()]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.run.path / "log.csv", text.getvalue())


def numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields each number of a line of the log; those of nested values are called `outer/inner` and `outer/0`."""
    for name, value in record.items():
        nested = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        if isinstance(nested, Mapping):
            yield from numbers({str(key): entry for key, entry in nested.items()}, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
