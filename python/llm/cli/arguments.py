"""Sorts the arguments of `llm train` into settings, a settings file and texts; lists all settings."""

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
import typer

from llm.errors import ConfigError
from llm.settings.fields import declared, default_of, flat_fields
from llm.settings.names import LIST_HINT, full_name, hint_for
from llm.settings.run import RunConfig

Command = Callable[..., None]

# Switches of other programs.
_SWITCHES = {"wandb": "training.log_to=wandb", "tensorboard": "training.log_to=tensorboard"}
# Names that other programs have for options that are no settings.
_OPTIONS = {
    "devices": "--nproc N",
    "from_checkpoint": "--resume RUN",
    "gpus": "--nproc N",
    "model_name_or_path": "--init-from PATH",
    "name": "--out DIRECTORY",
    "nproc_per_node": "--nproc N",
    "num_gpus": "--nproc N",
    "num_processes": "--nproc N",
    "out_dir": "--out DIRECTORY",
    "output_dir": "--out DIRECTORY",
    "pretrained": "--init-from PATH",
    "resume_from": "--resume RUN",
    "resume_from_checkpoint": "--resume RUN",
    "run_dir": "--out DIRECTORY",
    "save_dir": "--out DIRECTORY",
    "tokenizer_name": "--tokenizer DIRECTORY",
    "tokenizer_path": "--tokenizer DIRECTORY",
}

_NUMBER = re.compile(r"-\.?\d")
_OTHER_CONFIGS = {".yaml", ".yml", ".py", ".cfg", ".ini"}
_TEXTS = {".json", ".jsonl", ".parquet", ".txt", ".md", ".gz", ".zst", ".csv", ".tsv"}


@dataclass
class Arguments:
    """What stands on the command line besides the options that `llm train` declares.

    Attributes:
        overrides: Settings as `section.field=value`.
        file: The settings file.
        paths: Texts, or the run to resume.
    """

    overrides: list[str] = field(default_factory=list)
    file: str | None = None
    paths: list[str] = field(default_factory=list)


def sorted_arguments(given: list[str]) -> Arguments:
    """Sorts arguments; an option that is the name of a setting, such as `--hidden-size 256`, becomes that setting.

    Raises:
        ConfigError: An option that is neither; a second settings file; a word that is neither a setting nor a path.
    """
    found = Arguments()
    rest = iter(given)
    for argument in rest:
        if argument.startswith("-") and argument != "-":
            found.overrides.append(_setting_of(argument, rest))
        elif "=" in argument and not Path(argument).exists():
            found.overrides.append(argument)
        elif argument.endswith(".toml"):
            found.file = _only(found.file, argument)
        else:
            found.paths.append(argument)
    return found


def check_texts(paths: list[str]) -> None:
    """Checks that arguments without an option are texts.

    Raises:
        ConfigError: An argument is neither a directory nor named like a text.
    """
    for path in paths:
        if not is_text(path):
            way_out = f"a setting looks like `section.field=value`; for a text use `--data {path}`"
            if Path(path).suffix.lower() in _OTHER_CONFIGS:
                way_out = "settings are written in TOML: `llm train --settings` lists them"
            raise ConfigError(
                f"{path!r} is neither a setting, nor a settings file (.toml), nor a text\nhint: {way_out}"
            )


def is_text(path: str) -> bool:
    """Returns whether an argument is a directory, a pattern, or named like a file of texts or rows."""
    is_pattern = any(letter in path for letter in "*?[")
    return is_pattern or Path(path).suffix.lower() in _TEXTS or Path(path).is_dir()


def _only(old: str | None, new: str) -> str:
    if old is not None:
        raise ConfigError(f"at most one settings file can be given, got {old}, {new}")
    return new


def _setting_of(option: str, rest: Iterator[str]) -> str:
    """The setting `section.field=value` that an option stands for; a value of its own is taken from `rest`."""
    name, given, value = option.partition("=")
    if option.lstrip("-") in _SWITCHES:
        return _SWITCHES[option.lstrip("-")]
    setting, is_off = _named(name)
    if not given:
        value = _next_value(name, setting, rest)
    return f"{setting}={'false' if is_off else value}"


def _named(option: str) -> tuple[str, bool]:
    """The setting that an option names, and whether the option turns it off, as `--no-tie-word-embeddings` does."""
    word = option.lstrip("-")
    if "." in word:
        return word.replace("-", "_"), False
    found = full_name(word)
    if found is not None:
        return found, False
    found = full_name(word.removeprefix("no-")) if word.startswith("no-") else None
    if found is None or declared(_types()[found])[0] is not bool:
        own = _OPTIONS.get(word.replace("-", "_"))
        hint = f"\nhint: did you mean `{own}`?" if own else hint_for(word) or LIST_HINT
        raise ConfigError(f"no such option `{option}`{hint}")
    return found, True


def _next_value(option: str, setting: str, rest: Iterator[str]) -> str:
    is_switch = setting in _types() and declared(_types()[setting])[0] is bool
    if is_switch:
        return "true"
    value = next(rest, None)
    if value is None or (value.startswith("-") and not _NUMBER.match(value)):
        kind = declared(_types()[setting])[0] if setting in _types() else None
        words = f"one of {', '.join(map(str, get_args(kind)))}: " if get_origin(kind) is Literal else ""
        raise ConfigError(f"`{option}` needs a value\nhint: {words}`{option} VALUE`, or `{setting}=VALUE`")
    return value


def _types() -> dict[str, Any]:
    return {name: one.type for name, one in flat_fields(RunConfig)}


def with_settings(options: Mapping[str, Sequence[str]]) -> Callable[[Command], Command]:
    """Adds an option for each setting of a run in `options` to a command.

    The command receives the given ones as `**values`, by their dotted names.

    Args:
        options: Settings by their dotted names, and further names of the options.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            dotted = {one.partition(".")[2]: one for one in options}
            given = {name: value for name, value in values.items() if value is not None or name not in dotted}
            command(**{dotted.get(name, name): value for name, value in given.items()})

        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
        added = [_setting_option(dotted, further) for dotted, further in options.items()]
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*own, *added)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _setting_option(dotted: str, further: Sequence[str]) -> inspect.Parameter:
    name = dotted.partition(".")[2]
    kind, meta = declared(_types()[dotted])
    choices = "|".join(map(str, get_args(kind))) if get_origin(kind) is Literal else None
    kind = kind if choices is None else str
    about = (meta.description or "").replace("null: ", "default: ")
    option = typer.Option(f"--{name.replace('_', '-')}", *further, min=meta.ge, help=about, metavar=choices)
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def settings_table(words: list[str]) -> Iterator[str]:
    """Yields the lines of a table of all settings, or of those whose name or meaning has one of `words` in it.

    Raises:
        ConfigError: No setting has any of them.
    """
    found = [row for row in map(_row, flat_fields(RunConfig)) if _is_about(row, words)]
    if not found:
        hint = next(filter(None, map(hint_for, words)), LIST_HINT)
        raise ConfigError(f"no setting has {' or '.join(map(repr, words))} in its name or meaning{hint}")
    rows = [("setting", "type", "default", "meaning"), *found]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])


def _is_about(row: tuple[str, ...], words: list[str]) -> bool:
    text = f"{row[0]} {row[3]}".lower()
    return not words or any(word.lower() in text or word.lower().replace("-", "_") in text for word in words)


def _row(setting: tuple[str, msgspec.structs.FieldInfo]) -> tuple[str, str, str, str]:
    name, one = setting
    kind, meta = declared(one.type)
    default = default_of(one)
    shown = "required" if default is msgspec.NODEFAULT else msgspec.json.encode(default).decode()
    return name, _type_words(kind, meta), shown, meta.description or ""


def _type_words(kind: Any, meta: msgspec.Meta) -> str:
    """`int ≥ 1`, `float ≥ 0 < 1`, `bpe | character`."""
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    word = {str: "text", tuple: "list", dict: "table"}.get(get_origin(kind) or kind) or getattr(kind, "__name__", "")
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        word = "table"
    least = f"≥ {meta.ge:g}" if meta.ge is not None else f"> {meta.gt:g}" if meta.gt is not None else ""
    most = f"≤ {meta.le:g}" if meta.le is not None else f"< {meta.lt:g}" if meta.lt is not None else ""
    return " ".join(filter(None, (word, least, most)))
