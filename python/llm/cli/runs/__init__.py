"""`llm runs`: one verb a file."""

import typer

from llm.cli.options import NamingOptions
from llm.cli.runs import compare, list_, plot

app = typer.Typer(help="List, compare and plot training runs.", no_args_is_help=True)


@app.callback()
def runs() -> None:
    """List, compare and plot training runs."""


for verb in (list_, compare, plot):
    app.command(verb.NAME, cls=NamingOptions, epilog=verb.EXAMPLE)(verb.command)
