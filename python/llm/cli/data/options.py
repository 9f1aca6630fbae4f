"""What the verbs of `llm data` share."""

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import msgspec
import typer

from llm.errors import ConfigError
from llm.settings.merge import Override, load_run_config, raw_setting
from llm.settings.model import ModelConfig
from llm.settings.run import DataConfig, RunConfig

CONTEXT_LENGTH = 256
# Kinds of data that come in rows.
ROW_KINDS = ("chat", "preference")
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
ChatTemplate = Annotated[
    str | None, typer.Option(metavar="NAME|FILE", help="For conversations: chatml, play or a Jinja file.")
]
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
    file, longest = files[0] if files else None, "model.max_position_embeddings"
    # Samples are shown before there is a model, whose default limit says nothing about them.
    asked = raw_setting("data.context_length", file, overrides)
    if isinstance(asked, int) and raw_setting(longest, file, overrides) is None:
        overrides.append((longest, max(asked, 1)))
    return load_run_config(file, overrides).data


def with_kind(config: DataConfig) -> DataConfig:
    """The settings with the kind `chat` or `preference` if the first row of the first file is one.

    Rows with the field that holds the text are text.
    """
    from llm.data.readers import corpus_files, kind_of, read_rows
    from llm.data.rows import format_of, preference_format

    paths = [path for source in config.all_sources for path in source.paths]
    if config.kind in ROW_KINDS or not paths or kind_of(file := corpus_files(paths)[0]) == "text":
        return config
    row = next(read_rows(file), None)
    if row is None or config.field in row.values:
        return config
    found = preference_format(row.values)
    # Many rows of prompts and completions have a `label` of another meaning.
    if found == "pairs" or (found == "labels" and isinstance(row.values["label"], bool)):
        return msgspec.structs.replace(config, kind="preference")
    return msgspec.structs.replace(config, kind="chat") if format_of(row.values) is not None else config


def prepared_rows(config: DataConfig, path: str, chat_template: str | None, cache: Path) -> Any:
    """Encodes rows into `cache`, and returns their data module and the tokenizer, which has the template asked for."""
    from llm.data import ChatDataModule
    from llm.data.readers import corpus_files, read_rows
    from llm.data.rows import preference_format
    from llm.settings.preference import PreferenceConfig
    from llm.tokenization import choose_chat_template, load_tokenizer
    from llm.training.assembly import build_rows
    from llm.training.rows import encoder_of

    tokenizer = load_tokenizer(path)
    if chat_template is not None:
        choose_chat_template(tokenizer, chat_template)
    run = _run_of(config, config.context_length or CONTEXT_LENGTH)
    if config.kind == "preference":
        first = next(read_rows(corpus_files(config.all_sources[0].paths)[0]))
        if preference_format(first.values) == "labels":
            run = msgspec.structs.replace(run, preference=PreferenceConfig(loss="kto"))
    ChatDataModule.prepare(cache, config, encoder_of(run, tokenizer))
    context_length = config.context_length or ChatDataModule(cache, 1, config).longest_row
    shown = _run_of(msgspec.structs.replace(config, context_length=context_length), context_length)
    return build_rows(msgspec.structs.replace(shown, preference=run.preference), cache), tokenizer


def _run_of(config: DataConfig, context_length: int) -> RunConfig:
    """Returns the settings of a run on some data, whose model takes samples of this many tokens."""
    return RunConfig(data=config, model=ModelConfig(max_position_embeddings=context_length))


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
