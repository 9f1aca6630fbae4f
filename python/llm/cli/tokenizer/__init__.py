"""`llm tokenizer`: one file per subcommand."""

import typer

from llm.cli.tokenizer import bench, convert, decode, encode, info, train

app = typer.Typer(help="Train, inspect, convert and use tokenizers.", no_args_is_help=True)
for verb in (train, encode, decode, info, convert, bench):
    app.command(verb.command.__name__, epilog=verb.EXAMPLE)(verb.command)
