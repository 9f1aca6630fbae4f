"""`llm runs plot`."""

from typing import Annotated

import typer

NAME = "plot"
EXAMPLE = "Example:  llm runs plot runs/base runs/wide --out losses.svg"


def plot(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="The runs' directories.")],
    out: Annotated[str, typer.Option(help="The file: .html, .svg, or .png with matplotlib.")] = "runs.html",
    key: Annotated[
        list[str] | None, typer.Option(help="A key of log.jsonl; may be repeated. Default: the losses.")
    ] = None,
) -> None:
    """Draw curves of runs over each other."""
    from llm.training.runs import plot_runs

    print(plot_runs(runs, out, key or ()))


command = plot
