"""`llm bench`: one verb a file."""

import typer

from llm.cli.bench import scheduler, serve

app = typer.Typer(help="Measure a server, or parts of the engine.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure a server, or parts of the engine."""


for verb in (scheduler, serve):
    app.command(verb.command.__name__, epilog=verb.EXAMPLE)(verb.command)
