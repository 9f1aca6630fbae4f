"""Rows of conversations for tests of fine-tuning."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

COLOURS = ("red", "green", "blue", "gold")


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def dialogue(number: int) -> dict[str, Any]:
    """A question about one of twelve boxes, and its answer."""
    box = number % 12
    return {
        "messages": [
            turn("user", f"What colour is box {box}?"),
            turn("assistant", f"Box {box} is {COLOURS[box % 4]}."),
        ]
    }


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file
