"""Line charts as SVG, whose colours are those of the page around them."""

import math
from collections.abc import Sequence
from html import escape

from llm.training.report.curves import Curve, Point, thinned

NARROW, WIDE = 640, 1120
_HEIGHT = 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 26
NUM_COLORS = 6
# The two colour schemes of charts, also for a chart on its own.
STYLE = """
:root { --ink: #1d2433; --soft: #667085; --grid: #e3e7ee; --paper: #ffffff; --c0: #2f6fde; --c1: #d9622b;
  --c2: #1f9d6b; --c3: #9256d9; --c4: #b8860b; --c5: #d1417a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --grid: #2c3442; --paper: #171c26;
  --c0: #6ea3ff; --c1: #ff9a66; --c2: #4fd1a0; --c3: #c39bff; --c4: #e5b94a; --c5: #ff82b0; } }
.chart text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.chart .grid { stroke: var(--grid); }
.chart path { fill: none; stroke-width: 2; stroke-linejoin: round; }
.chart .faint { stroke-width: 1; opacity: .35; }
""" + "".join(
    f".chart path.c{number} {{ stroke: var(--c{number}); }} .chart circle.c{number} {{ fill: var(--c{number}); }}\n"
    for number in range(NUM_COLORS)
)


def chart(title: str, curves: Sequence[Curve], *, width: int = NARROW, scheme: bool = False) -> str:
    """Returns an SVG of curves over steps; empty if there is no point.

    Args:
        title: What the chart shows, for readers who hear it.
        curves: The curves; those without points are left out.
        width: Width of the drawing, whose height is fixed.
        scheme: Whether the SVG brings its colours, to be a file of its own.
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    area = _Area(curves, width)
    size = f'viewBox="0 0 {width} {_HEIGHT}"' + (f' width="{width}" height="{_HEIGHT}"' if scheme else "")
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" {size} role="img" aria-label="{escape(title)}">']
    parts += [f"<style>{STYLE}</style>"] if scheme else []
    parts += area.axes()
    parts += [area.drawn(curve) for curve in curves]
    return "".join([*parts, "</svg>"])


def legend(curves: Sequence[Curve]) -> str:
    """Returns the names of the curves in HTML, each with its colour."""
    names = [
        f'<span class="key" style="--key: var(--c{curve.color % NUM_COLORS})">{escape(curve.label)}</span>'
        for curve in curves
        if curve.points and curve.style != "faint"
    ]
    return f'<p class="legend">{"".join(names)}</p>' if len(names) > 1 else ""


class _Area:
    """The plane of a chart: places points and draws the axes."""

    def __init__(self, curves: Sequence[Curve], width: int) -> None:
        self.width = width
        steps = [step for curve in curves for step, _ in curve.points]
        self.x = (min(steps), max(*steps, min(steps) + 1))
        low, high = _value_range(curves)
        room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
        self.y = (0.0 if 0 <= low < room * 4 else low - room, high + room)

    def place(self, point: Point) -> tuple[float, float]:
        """Returns a point's place on paper; what lies above or below the plane ends at its edge."""
        across = (point[0] - self.x[0]) / (self.x[1] - self.x[0])
        up = min(1.0, max(0.0, (point[1] - self.y[0]) / (self.y[1] - self.y[0])))
        return (
            round(_LEFT + across * (self.width - _LEFT - _RIGHT), 1),
            round(_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM), 1),
        )

    def axes(self) -> list[str]:
        """Returns grid lines with their numbers."""
        parts = []
        for value in ticks(*self.y, 5):
            y = self.place((self.x[0], value))[1]
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{self.width - _RIGHT}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{short(value)}</text>')
        for value in ticks(*self.x, 8):
            x = self.place((value, self.y[0]))[0]
            parts.append(f'<text x="{x}" y="{_HEIGHT - 8}" text-anchor="middle">{short(value)}</text>')
        return parts

    def drawn(self, curve: Curve) -> str:
        """Returns one curve."""
        places = [self.place(point) for point in thinned(curve.points)]
        color = f"c{curve.color % NUM_COLORS}"
        line = "M" + "L".join(f"{x} {y}" for x, y in places)
        dots = curve.style == "dots" or len(places) == 1
        parts = [f'<path class="{color} {curve.style}" d="{line}"><title>{escape(curve.label)}</title></path>']
        for (x, y), (step, value) in zip(places, thinned(curve.points), strict=True) if dots else ():
            label = f"{escape(curve.label)}, step {step:,.0f}: {value:.4g}"
            parts.append(f'<circle class="{color}" cx="{x}" cy="{y}" r="3.5"><title>{label}</title></circle>')
        return "".join(parts)


def _value_range(curves: Sequence[Curve]) -> tuple[float, float]:
    """Returns the range of values to show; single spikes of a faint curve may leave it."""
    low, high = math.inf, -math.inf
    for curve in curves:
        values = sorted(value for _, value in curve.points)
        cut = len(values) // 100 if curve.style == "faint" else 0
        low, high = min(low, values[cut]), max(high, values[-1 - cut])
    return low, high


def ticks(low: float, high: float, most: int) -> list[float]:
    """Returns at most about `most` round numbers between `low` and `high`."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """Returns a number in few characters: `12.5k`, `3M`, `0.25`, `3e-4`."""
    size = abs(value)
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.4g}{letter}"
    if size and size < 0.01:
        digits, power = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.4g}"
