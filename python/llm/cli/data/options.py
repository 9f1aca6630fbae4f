"""What the verbs of `llm data` share."""

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from llm.errors import ConfigError
from llm.settings.merge import Override, load_run_config
from llm.settings.run import DataConfig

CONTEXT_LENGTH = 256
Texts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TEXT... [CONFIG.toml] [data.field=value]...",
        help="Files, directories, globs; a settings file; single settings of `data`.",
    ),
]
More = Annotated[list[str] | None, typer.Option("--data", hidden=True)]  # what `llm train` calls a text
TokenizerPath = Annotated[str | None, typer.Option("--tokenizer", help="A tokenizer's directory, run or checkpoint.")]
ContextLength = Annotated[int | None, typer.Option(min=1, help="Tokens a sample.", show_default=str(CONTEXT_LENGTH))]
Field = Annotated[str | None, typer.Option(help="Field or column with the text.")]


def data_config(texts: list[str] | None, more: list[str] | None, **values: Any) -> DataConfig:
    """The settings of the texts, files, settings and options of a command.

    Args:
        texts: Arguments without an option.
        more: Texts with one.
        **values: Options by the name of the setting; None where one is not given.
    """
    given = [*(texts or []), *(more or [])]
    files = [text for text in given if text.endswith(".toml")]
    settings = [text for text in given if "=" in text and text not in files and not Path(text).exists()]
    paths = [text for text in given if text not in files and text not in settings]
    overrides: list[Override] = [
        *settings,
        *((f"data.{name}", value) for name, value in values.items() if value is not None),
    ]
    overrides += [("data.paths", paths)] if paths else []
    return load_run_config(files[0] if files else None, overrides).data


def needed_tokenizer(path: str | None) -> str:
    """The path of a tokenizer, which a command can't do without.

    Raises:
        ConfigError: There is none.
    """
    if path is None:
        raise ConfigError(
            "`--tokenizer` is missing\n"
            "hint: name a run, whose tokenizer is in RUN/tokenizer, or make one: `llm tokenizer train TEXT --out DIR`"
        )
    return path


@contextmanager
def cache_of(config: DataConfig) -> Any:
    """The directory for shards and counts: `data.cache`, or one that is removed in the end."""
    if config.cache_directory is not None:
        yield config.cache_directory
        return
    with TemporaryDirectory() as directory:
        yield Path(directory)
