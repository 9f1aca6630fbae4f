"""Draws a report."""

from pathlib import Path

from llm.benchmark.report import TIMES, Report
from llm.errors import ConfigError


def plot_report(report: Report, path: str | Path) -> None:
    """Writes a picture of how many requests (or events) took at most how long; its name ends in .png, .svg or .pdf.

    Raises:
        ConfigError: matplotlib isn't installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("`plot` needs matplotlib\nhint: pip install matplotlib") from error
    figure = Figure(figsize=(10, 6), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, TIMES.items(), strict=True):
        for number, repeat in enumerate(report.repeats, start=1):
            done = [request for request in repeat.requests if request.error is None]
            values = {
                "ttft": [request.ttft_s for request in done],
                "tpot": [request.tpot_s for request in done if request.tpot_s is not None],
                "itl": [gap for request in done for gap in request.gaps_s],
                "e2e": [request.e2e_s for request in done],
            }[name]
            if values:
                axes.ecdf([value * 1e3 for value in values], label=f"repeat {number}")
        axes.set_title(title)
        axes.set_xlabel("ms")
        axes.set_ylabel("share of answers" if name != "itl" else "share of events")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
