"""`llm runs compare`."""

import sys
from typing import Annotated

import typer

from llm.cli.runs.tables import show, sparkline

NAME = "compare"
EXAMPLE = "Example:  llm runs compare runs/base runs/wide"


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="The runs' directories.")],
) -> None:
    """Show where runs ended, the settings in which they differ, and their losses as curves."""
    from llm.training.report.curves import points_of, smoothed
    from llm.training.runs import compare_runs

    found = compare_runs(runs)
    show(sys.stdout, ["", *runs], [[name, *values] for name, values in found.figures.items()])
    print()
    if found.settings:
        show(sys.stdout, ["setting", *runs], [[name, *values] for name, values in found.settings.items()])
    else:
        print("the settings are equal")
    for title, key in (("training loss", "loss"), ("validation loss", "validation_loss")):
        curves = [points_of(record.log, key) for record in found.records]
        drawn = [smoothed(points) if key == "loss" else points for points in curves]
        if any(drawn):
            print(f"\n{title}, by step")
            show(sys.stdout, None, [list(row) for row in zip(runs, sparkline(drawn), strict=True)])


command = compare
