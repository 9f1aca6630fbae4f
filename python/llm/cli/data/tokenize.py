"""`llm data tokenize`."""

from pathlib import Path
from typing import Annotated

import typer

from llm.cli.data.options import Field, More, Texts, TokenizerPath, data_config, needed_tokenizer
from llm.errors import ConfigError
from llm.settings.paths import check_directory, quoted

EXAMPLE = "Example:  llm data tokenize corpus/ --tokenizer runs/base/tokenizer --cache ~/shards"


def tokenize(
    texts: Texts = None,
    more: More = None,
    tokenizer: TokenizerPath = None,
    cache: Annotated[
        str | None, typer.Option(help="Directory of shards; `data.cache` of the runs that shall use them.")
    ] = None,
    field: Field = None,
) -> None:
    """Tokenize text ahead of runs, which find the shards by `data.cache`."""
    from llm.data import TextDataModule
    from llm.tokenization import load_tokenizer

    if cache is not None:
        check_directory("--cache", Path(cache).expanduser())
    config = data_config(texts, more, field=field, cache=cache)
    folder = config.cache_directory
    if folder is None:
        raise ConfigError("`--cache` is missing\nhint: name the directory for the shards, such as `--cache ~/shards`")
    TextDataModule.prepare(folder, config, load_tokenizer(needed_tokenizer(tokenizer)))
    for facts in TextDataModule(folder, 1, config).facts():
        print(f"{facts['name']}: {facts['tokens'] + facts['validation_tokens']:,} tokens")
    given = [*(texts or []), *(f"--data={text}" for text in more or []), *_further(field)]
    run = ["--tokenizer", str(tokenizer), "--out", "runs/base", f"data.cache={config.cache}"]
    print(f"next:  llm train {quoted(*given, *run)}")


def _further(field: str | None) -> list[str]:
    return [] if field is None else [f"data.field={field}"]


command = tokenize
