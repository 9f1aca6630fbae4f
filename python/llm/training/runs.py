"""Runs beside each other: a list, a comparison, a chart."""

import importlib.util
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.checkpoint import Run, write_atomically
from llm.errors import CheckpointError, ConfigError, MissingExtraError
from llm.training.record import RunRecord
from llm.training.report.curves import Curve, points_of, smoothed
from llm.training.report.page import document, figure, run_figures
from llm.training.report.settings import differing
from llm.training.report.svg import chart

_DEPTH = 3
_FORMATS = (".html", ".png", ".svg")


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other; each tuple has one entry a run.

    Attributes:
        records: The runs.
        settings: The settings that differ, by their names.
        figures: Steps, losses, time and speed at the end, in words; `-` for what a run doesn't have.
    """

    records: tuple[RunRecord, ...]
    settings: dict[str, tuple[str, ...]]
    figures: dict[str, tuple[str, ...]]


def list_runs(directory: str | os.PathLike[str] = "runs") -> list[RunRecord]:
    """Returns the runs in `directory` or up to three folders below it, sorted by path; runs that can't be read too.

    Raises:
        ConfigError: There is no such directory.

    Example:
        >>> from llm.training import list_runs
        >>> [record.state for record in list_runs("runs")]  # doctest: +SKIP
    """
    root = Path(directory)
    if not root.is_dir():
        raise ConfigError(f"no directory {str(root)!r}\nhint: name the folder that holds the runs, such as `runs`")
    patterns = ("/".join(["*"] * depth + ["run.json"]) for depth in range(_DEPTH + 1))
    files = sorted({file for pattern in patterns for file in root.glob(pattern)})
    return [RunRecord.read(Run(file.parent)) for file in files]


def compare_runs(paths: Sequence[str | os.PathLike[str]]) -> Comparison:
    """Returns what differs between runs, and where each of them ended.

    Raises:
        ConfigError: Fewer than two runs.
        CheckpointError: A path holds no run.

    Example:
        >>> from llm.training import compare_runs
        >>> compare_runs(["runs/base", "runs/wide"]).settings  # doctest: +SKIP
        {'model.hidden_size': ('256', '512')}
    """
    if len(paths) < 2:
        raise ConfigError(f"a comparison needs at least 2 runs, got {len(paths)}")
    records = tuple(map(_read, paths))
    tables = [_figures(record) for record in records]
    names = dict.fromkeys(name for table in tables for name in table)
    figures = {name: tuple(table.get(name, "-") for table in tables) for name in names}
    return Comparison(records, differing([record.config for record in records]), figures)


def plot_runs(paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], keys: Sequence[str] = ()) -> Path:
    """Draws curves of runs over each other into a file and returns its path.

    Args:
        paths: The runs.
        out: The file; its name ends in `.html`, `.svg` or `.png`, the last of which needs matplotlib.
        keys: Keys of the log to draw, such as `validation_loss`, `grad_norm` or `loss/web`; by default the
            training and validation losses. `.svg` and `.png` draw all keys into one chart.

    Raises:
        CheckpointError: A path holds no run.
        ConfigError: The format is unknown, or no run has a value under a key.
        MissingExtraError: matplotlib is not installed.
    """
    file = Path(out)
    if file.suffix not in _FORMATS:
        raise ConfigError(f"`out` must end in one of {', '.join(_FORMATS)}, got {str(out)!r}")
    records = [_read(path) for path in paths]
    wanted = list(keys) or ["loss", "validation_loss"]
    curves = {key: _curves(records, key) for key in wanted}
    for key in keys:
        if not any(curve.points for curve in curves[key]):
            known = sorted({name for record in records for line in record.log for name in line})
            raise ConfigError(f"no run has values under {key!r} in its log; there are {', '.join(known)}")
    every = [curve for group in curves.values() for curve in group]
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".png":
        _write_png(every, " · ".join(wanted), file)
    elif file.suffix == ".svg":
        write_atomically(file, chart(" · ".join(wanted), every, scheme=True))
    else:
        write_atomically(file, _page(records, curves))
    return file


def _read(path: str | os.PathLike[str]) -> RunRecord:
    run = Run(path)
    if not run.exists:
        raise CheckpointError(f"{run.path} holds no run: it has no run.json\nhint: `llm runs list` shows the runs")
    return RunRecord.read(run)


def _figures(record: RunRecord) -> dict[str, str]:
    best, memory = record.best("validation_loss"), record.last("memory_bytes")
    return {
        "state": record.state,
        "parameters": f"{record.about['num_parameters']:,}" if "num_parameters" in record.about else "-",
        **run_figures(record),
        "best validation loss": "-" if best is None else f"{best:.4f}",
        "memory": "-" if memory is None else f"{memory / 2**30:.2f} GiB",
    }


def _curves(records: Iterable[RunRecord], key: str) -> list[Curve]:
    """Returns a run's curve under `key`; the training loss is smoothed, as single steps say little."""
    found = []
    for color, record in enumerate(records):
        points = points_of(record.log, key)
        is_validation = key.startswith(("validation", "bits_per_byte"))
        label = f"{record.name}: {key.replace('_', ' ')}"
        found.append(
            Curve(label, smoothed(points) if key == "loss" else points, "dots" if is_validation else "line", color)
        )
    return found


def _page(records: Sequence[RunRecord], curves: dict[str, list[Curve]]) -> str:
    names = " · ".join(record.name for record in records)
    charts = "".join(figure(key.replace("_", " "), group, "wide") for key, group in curves.items())
    return document(names, [f'<div class="charts">{charts}</div>'])


def _write_png(curves: Sequence[Curve], title: str, file: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("a .png needs `matplotlib`\nhint: pip install matplotlib, or write .svg or .html")
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 5), layout="constrained")
    axes = drawing.subplots()
    for curve in curves:
        if curve.points:
            style = "o--" if curve.style == "dots" else "-"
            axes.plot(*zip(*curve.points, strict=True), style, color=f"C{curve.color}", label=curve.label, markersize=4)
    axes.set_xlabel("optimizer step")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    drawing.savefig(file, dpi=110)
