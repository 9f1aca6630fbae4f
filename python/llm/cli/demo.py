"""`llm demo`."""

from typing import Annotated

import typer

EXAMPLE = "Example:  llm demo"


def demo(
    out: Annotated[str, typer.Option(help="The run's directory; made anew each time.")] = "runs/demo",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps; default: what the demo was tuned for.")
    ] = None,
) -> None:
    """Train a small model on Shakespeare, serve it and stream an answer: a few minutes on a laptop."""
    from llm.demo import run_demo

    run_demo(out, max_steps=steps)


command = demo
