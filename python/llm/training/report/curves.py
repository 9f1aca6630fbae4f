"""Curves of a run's log: points, smoothed and thinned out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Point: TypeAlias = tuple[float, float]
_MAX_POINTS = 500


@dataclass(frozen=True)
class Curve:
    """One curve of a chart.

    Attributes:
        label: Its name in the legend.
        points: Steps and values, by rising step.
        style: A line, a faint line behind the others, or a line with dots.
        color: Number of its colour; curves that belong together share one.
    """

    label: str
    points: Sequence[Point]
    style: Literal["line", "faint", "dots"] = "line"
    color: int = 0


def points_of(log: Iterable[Mapping[str, Any]], key: str) -> list[Point]:
    """Returns the steps and values of the lines that have a number under `key`."""
    values = ((line["step"], line.get(key)) for line in log)
    return [(float(step), float(value)) for step, value in values if isinstance(value, int | float)]


def keys_below(log: Iterable[Mapping[str, Any]], outer: str) -> list[str]:
    """Returns the names of the keys `outer/name`, in order of appearance."""
    keys = dict.fromkeys(key for line in log for key in line)
    return [key.removeprefix(f"{outer}/") for key in keys if key.startswith(f"{outer}/")]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Returns a moving average over a thirtieth of the points, at most 50; it starts as a plain mean."""
    weight = 1 / min(max(len(points) / 30, 1), 50)
    result: list[Point] = []
    for number, (step, value) in enumerate(points, 1):
        before = result[-1][1] if result else value
        result.append((step, before + max(weight, 1 / number) * (value - before)))
    return result


def thinned(points: Sequence[Point], most: int = _MAX_POINTS) -> list[Point]:
    """Returns at most about `most` points; of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    size = -(-2 * len(points) // most)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept


def loss_curves(log: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Returns the training loss, raw and smoothed, and the validation loss."""
    raw = points_of(log, "loss")
    return [
        Curve("training", raw, "faint"),
        Curve("training, smoothed", smoothed(raw)),
        Curve("validation", points_of(log, "validation_loss"), "dots", 1),
    ]
