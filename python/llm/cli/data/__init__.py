"""`llm data`: one verb a file."""

import typer

from llm.cli.data import info, preview, tokenize
from llm.cli.options import NamingOptions

app = typer.Typer(help="Count, look at and tokenize text to learn from.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Count, look at and tokenize text to learn from."""


for verb in (info, preview, tokenize):
    app.command(verb.command.__name__, cls=NamingOptions, epilog=verb.EXAMPLE)(verb.command)
