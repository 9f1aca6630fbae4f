"""Tables and small curves on a terminal or in a pipe."""

from collections.abc import Sequence
from typing import TextIO

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 48


def show(file: TextIO, head: Sequence[str] | None, lines: Sequence[Sequence[str]]) -> None:
    """Prints lines in columns; those of numbers are set to the right."""
    rows = [*([list(head)] if head else []), *map(list, lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = [column > 0 and all(_is_number(line[column]) for line in lines) for column in range(len(widths))]
    for row in rows:
        cells = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ]
        print("  ".join(cells).rstrip(), file=file)


def sparkline(curves: Sequence[Sequence[tuple[float, float]]]) -> list[str]:
    """Returns a small curve and its last value for each curve, all on the same axes."""
    steps = [step for points in curves for step, _ in points]
    values = sorted(value for points in curves for _, value in points)
    low, high = values[0], values[-1]
    drawn = []
    for points in curves:
        cells = [" "] * _CURVE_WIDTH
        for step, value in points:
            place = int((step - min(steps)) / (max(steps) - min(steps) or 1) * (_CURVE_WIDTH - 1))
            cells[place] = _BARS[int((value - low) / (high - low or 1) * (len(_BARS) - 1))]
        drawn.append(f"{''.join(cells)}  {points[-1][1]:.4f}" if points else "-")
    return drawn


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(",", "").replace(" / ", "").replace(".", "").rstrip("kMGT%").isdigit()
