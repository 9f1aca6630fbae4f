"""Files of JSON lines, each of which belongs to an optimizer step."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm.checkpoint.atomic import write_atomically
from llm.checkpoint.space import explains_failed_writes


class StepLines:
    """A file with one JSON object a line; each has the key `step`."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def append(self, record: Mapping[str, Any]) -> None:
        """Appends one line."""
        with explains_failed_writes(self.file), self.file.open("a", encoding="utf-8") as lines:
            lines.write(_line(record))

    def read(self) -> list[dict[str, Any]]:
        """Reads all complete lines; a line cut short by a crash is skipped."""
        if not self.file.is_file():
            return []
        lines = self.file.read_text(encoding="utf-8", errors="replace").split("\n")
        records = (_read(line) for line in lines)
        return [record for record in records if record is not None]

    def rewind(self, step: int) -> None:
        """Removes the lines after `step`, which a resumed run writes again, and a line cut short by a crash."""
        if not self.file.is_file():
            return
        kept = [record for record in self.read() if record["step"] <= step]
        write_atomically(self.file, "".join(map(_line, kept)))


def _line(record: Mapping[str, Any]) -> str:
    """Returns one line of JSON; NaN and infinity, which JSON lacks, become null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def _read(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None
