"""Rows of preferences for tests."""

from collections.abc import Iterator
from typing import Any

from tests.unit.chat_rows import COLOURS, turn


def pair(number: int) -> dict[str, Any]:
    """A question about one of twelve boxes, a short answer that is chosen and a long one that is rejected."""
    box = number % 12
    colour = COLOURS[box % 4]
    return {
        "prompt": f"What colour is box {box}?",
        "chosen": f"{colour}!",
        "rejected": f"Box {box} is {colour}, as far as I know.",
    }


def as_messages(row: dict[str, Any]) -> dict[str, Any]:
    """The same row with lists of messages."""
    return {
        "prompt": [turn("user", row["prompt"])],
        "chosen": [turn("assistant", row["chosen"])],
        "rejected": [turn("assistant", row["rejected"])],
    }


def as_conversations(row: dict[str, Any]) -> dict[str, Any]:
    """The same row as two whole conversations."""
    prompt = turn("user", row["prompt"])
    return {name: [prompt, turn("assistant", row[name])] for name in ("chosen", "rejected")}


def labelled(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same row as two answers, each with a label."""
    for name in ("chosen", "rejected"):
        yield {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
