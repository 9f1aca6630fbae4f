"""`llm tokenizer`: one verb a file."""

import typer

from llm.cli.tokenizer import bench, convert, decode, encode, info, train

app = typer.Typer(help="Train, use and look at tokenizers.", no_args_is_help=True)
for verb in (train, encode, decode, info, convert, bench):
    app.command(verb.command.__name__, epilog=verb.EXAMPLE)(verb.command)
