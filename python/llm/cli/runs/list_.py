"""`llm runs list`."""

import sys
from typing import Annotated

import typer

from llm.cli.runs.tables import show
from llm.settings.paths import quoted

NAME = "list"
EXAMPLE = "Example:  llm runs list runs"
_FIGURES = ("steps", "tokens", "validation loss", "bits per byte", "time")


def list_runs(
    directory: Annotated[str, typer.Argument(metavar="[DIR]", help="The folder that holds the runs.")] = "runs",
) -> None:
    """List the runs of a folder: model, steps, tokens, losses, time and state."""
    from llm.training.report.page import run_figures
    from llm.training.runs import list_runs as all_runs

    records = all_runs(directory)
    if not records:
        out = quoted(f"{directory}/base")
        print(f"no run in {directory}; start one with:  llm train --data corpus.txt --out {out}")
        return
    lines = []
    for record in records:
        figures = run_figures(record)
        size = record.about.get("num_parameters")
        model = "-" if size is None else f"{size:,}"
        lines.append([str(record.run.path), model, *(figures.get(name, "-") for name in _FIGURES), record.state])
    show(sys.stdout, ["run", "parameters", *_FIGURES, "state"], lines)


command = list_runs
