"""`llm tokenizer`: one verb a file."""

import typer

from llm.cli.tokenizer import bench, decode, encode, info, train

app = typer.Typer(help="Train, use and look at tokenizers.", no_args_is_help=True)
for verb in (train, encode, decode, info, bench):
    app.command(verb.command.__name__, epilog=verb.EXAMPLE)(verb.command)
