"""`llm bench`: one verb a file."""

import typer

from llm.cli.bench import scheduler

app = typer.Typer(help="Measure parts of the engine.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure parts of the engine."""


for verb in (scheduler,):
    app.command(verb.command.__name__, epilog=verb.EXAMPLE)(verb.command)
