"""What the verbs of `llm data` share."""

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from llm.settings.merge import load_run_config
from llm.settings.run import DataConfig

Texts = Annotated[
    list[str], typer.Argument(metavar="TEXT... [CONFIG.toml]", help="Files, directories, globs; or a settings file.")
]
TokenizerPath = Annotated[str | None, typer.Option("--tokenizer", help="A tokenizer's directory, run or checkpoint.")]
Field = Annotated[str | None, typer.Option(help="Field or column with the text.")]


def data_config(texts: list[str], **values: Any) -> DataConfig:
    """The settings of the texts, files and options of a command."""
    files = [text for text in texts if text.endswith(".toml")]
    paths = [text for text in texts if not text.endswith(".toml")]
    overrides = [(f"data.{name}", value) for name, value in values.items() if value is not None]
    overrides += [("data.paths", paths)] if paths else []
    return load_run_config(files[0] if files else None, overrides).data


@contextmanager
def cache_of(config: DataConfig) -> Any:
    """The directory for shards and counts: `data.cache`, or one that is removed in the end."""
    if config.cache_directory is not None:
        yield config.cache_directory
        return
    with TemporaryDirectory() as directory:
        yield Path(directory)
