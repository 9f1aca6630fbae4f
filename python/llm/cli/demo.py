"""`llm demo`."""

from typing import Annotated

import typer

EXAMPLE = "Example:  llm demo"


def demo(
    out: Annotated[str, typer.Option(help="Directory for the run; an earlier demo's run is replaced.")] = "runs/demo",
    chat: Annotated[
        bool, typer.Option("--chat", help="Also teach the model to answer questions; writes OUT-chat.")
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of optimizer steps; default: 800.")] = None,
) -> None:
    """Train a small model on Shakespeare, serve it and stream an answer. Takes a few minutes on a laptop."""
    from llm.demo import run_demo

    run_demo(out, max_steps=steps, chat=chat)


command = demo
