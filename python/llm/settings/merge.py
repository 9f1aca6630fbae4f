"""Checks settings, and fills them from a file, the environment and arguments."""

import json
import math
import numbers
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from llm.errors import ConfigError
from llm.settings.fields import structs_of
from llm.settings.names import full_name, hint_for, other_section, suggest
from llm.settings.run import RunConfig

T = TypeVar("T", bound=msgspec.Struct)
Override: TypeAlias = str | tuple[str, Any]
ENV_PREFIX = "LLM_"
_WORDS = {"null": None, "none": None, "None": None, "True": True, "False": False}
_SWITCHED = {True: "on", False: "off"}
_PRECISIONS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "float8"}


def validated(config: T) -> T:
    """Returns `config` with every field's type and range checked.

    Raises:
        ConfigError: A field breaks its declared type or range; the message names it, the value and what is allowed.
    """
    return _converted(msgspec.to_builtins(config, enc_hook=_plain_number), type(config))


def _plain_number(value: Any) -> int | float:
    """Returns a number of NumPy and its like as Python's."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise ConfigError(f"a setting must be a number, text, list or table, got {value!r}")


def from_builtins(values: Any, kind: type[T]) -> T:
    """Builds a `kind` from plain dicts and lists.

    Raises:
        ConfigError: An unknown key (the nearest valid one is named), a wrong type, a value out of range, or NaN or an
            infinity, which no setting takes.
    """
    _refuse_unknown_keys(values, kind, "")
    _refuse_infinite(values, "")
    return _converted(values, kind)


def _converted(values: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise ConfigError(_explain(error, values, kind)) from None


def load_run_config(
    file: str | os.PathLike[str] | None = None,
    overrides: Iterable[Override] = (),
    environ: Mapping[str, str] | None = None,
    base: RunConfig | None = None,
) -> RunConfig:
    """Merges defaults (or `base`), a TOML file, `LLM_SECTION__FIELD` variables, `section.field=value`: the last wins.

    Args:
        file: TOML with the sections of `RunConfig`.
        overrides: Texts like `training.epochs=3`; the value is read as TOML, else taken as text.
        environ: Variables to look at; the process's own by default.
        base: Settings to start from instead of the defaults.

    Raises:
        ConfigError: The file is missing or not TOML, a key is unknown, a value is of the wrong type or out of range.
    """
    values = _merged(file, overrides, os.environ if environ is None else environ, base)
    _spell_out(values)
    return from_builtins(values, RunConfig)


def raw_setting(
    dotted: str,
    file: str | os.PathLike[str] | None = None,
    overrides: Iterable[Override] = (),
    base: RunConfig | None = None,
) -> Any:
    """Returns what the same sources say about one setting, before anything is checked; None if they say nothing."""
    section, _, name = dotted.partition(".")
    values = _merged(file, overrides, os.environ, base).get(section)
    return values.get(name) if isinstance(values, dict) else None


def given_settings(config: RunConfig | str | os.PathLike[str] | None, overrides: Iterable[Override]) -> frozenset[str]:
    """Returns the names of the settings that somebody gave, as `section.field`; a `RunConfig` gives all of them.

    With a size, a `RunConfig` gives the settings that differ from the defaults, because the size decides the others.
    """
    base, file = (config, None) if isinstance(config, RunConfig) else (None, config)
    given = _names(_merged(file, overrides, os.environ, None))
    if base is None:
        return given
    values, defaults = msgspec.to_builtins(base), msgspec.to_builtins(RunConfig())
    if base.training.size is None:
        return given | _names(values)
    return given | {name for name in _names(values) if _value_of(values, name) != _value_of(defaults, name)}


def _names(values: dict[str, Any]) -> frozenset[str]:
    """Returns the names `section.field` of all values."""
    return frozenset(
        f"{name}.{field}" for name, section in values.items() if isinstance(section, dict) for field in section
    )


def _value_of(values: dict[str, Any], dotted: str) -> Any:
    section, _, field = dotted.partition(".")
    return values[section][field]


def _merged(
    file: str | os.PathLike[str] | None,
    overrides: Iterable[Override],
    environ: Mapping[str, str],
    base: RunConfig | None,
) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(base) if base else {}
    _merge(values, read_toml(Path(file)) if file else {})
    for dotted, value in from_environment(ENV_PREFIX, environ):
        # Variables without a section, and those of a server, aren't settings of a run.
        if "." in dotted and not dotted.startswith("server."):
            check_variable(ENV_PREFIX, dotted, value, RunConfig)
            assign(values, dotted, value)
    for override in overrides:
        assign(values, *(_parsed(override) if isinstance(override, str) else override))
    return values


def _spell_out(values: dict[str, Any]) -> None:
    """Replaces common spellings of values: `bf16` for `bfloat16`, one path for several, `csv,wandb` for a list."""
    training, data = values.get("training"), values.get("data")
    if isinstance(training, dict) and isinstance(precision := training.get("precision"), str):
        training["precision"] = _PRECISIONS.get(precision, precision)
    if isinstance(training, dict) and isinstance(compiled := training.get("compile"), bool):
        training["compile"] = _SWITCHED[compiled]
    for section, name in (("training", "log_to"), ("lora", "target_modules")):
        given = values.get(section)
        if isinstance(given, dict) and isinstance(words := given.get(name), str):
            given[name] = [word.strip() for word in words.split(",") if word.strip()]
    for name in ("paths", "validation_paths"):
        if isinstance(data, dict) and isinstance(paths := data.get(name), str):
            data[name] = [paths]


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the content of a TOML file.

    Raises:
        ConfigError: The file is missing, can't be read or isn't TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no config file {str(path)!r}\nhint: pass the path of a TOML file") from None
    except OSError as error:
        raise ConfigError(f"the config {str(path)!r} can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def from_environment(prefix: str, environ: Mapping[str, str]) -> list[tuple[str, Any]]:
    """Returns the variables with a prefix as settings: `LLM_TRAINING__EPOCHS=3` as `("training.epochs", 3)`."""
    return [
        (name.removeprefix(prefix).lower().replace("__", "."), _parse_value(text))
        for name, text in sorted(environ.items())
        if name.startswith(prefix)
    ]


def check_variable(prefix: str, dotted: str, value: Any, kind: type[msgspec.Struct]) -> None:
    """Checks that a variable, found by `from_environment`, names a setting of `kind`.

    Raises:
        ConfigError: It doesn't; the message names the variable and the nearest setting.
    """
    values: dict[str, Any] = {}
    assign(values, dotted, value)
    try:
        _refuse_unknown_keys(values, kind, "")
    except ConfigError as error:
        name = prefix + dotted.replace(".", "__").upper()
        raise ConfigError(f"the variable `{name}` names no setting: {error}") from None


def _parsed(override: str) -> tuple[str, Any]:
    name, separator, text = override.partition("=")
    dotted = name.strip() if "." in name else full_name(name)
    if not separator or dotted is None:
        raise ConfigError(f"a setting must look like `section.field=value`, got {override!r}{hint_for(name)}")
    return dotted, _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return _parse_json(text)
    # `1e6` steps are a million: a number written as whole is taken for an integer.
    is_whole = isinstance(value, float) and value.is_integer() and "e" in text.lower()
    return int(value) if is_whole else value


def _parse_json(text: str) -> Any:
    """Returns the value of JSON's objects and lists, whose spelling TOML does not know; other text as it is."""
    if not text.startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _merge(values: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Puts a value into nested dicts under its dotted name."""
    for key in reversed(dotted.split(".")):
        value = {key: value}
    _merge(values, value)


def _refuse_unknown_keys(values: Any, kind: type[msgspec.Struct], prefix: str) -> None:
    """Raises for the first key that `kind` has no field for, naming the nearest valid one."""
    if isinstance(values, list | tuple) and kind.__struct_config__.tag_field is None:
        for idx, value in enumerate(values):
            _refuse_unknown_keys(value, kind, f"{prefix.removesuffix('.')}[{idx}].")
    if not isinstance(values, Mapping):
        return
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in values.items():
        if key == kind.__struct_config__.tag_field:
            continue
        if key not in fields:
            raise ConfigError(f"unknown setting `{prefix}{key}`; {_suggest_setting(prefix, str(key), fields)}")
        for nested in _chosen(structs_of(fields[key]), value, f"{prefix}{key}"):
            _refuse_unknown_keys(value, nested, f"{prefix}{key}.")


def _refuse_infinite(values: Any, name: str) -> None:
    """Raises for the first NaN or infinity, which fields without a bound on that side would let through."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            _refuse_infinite(value, f"{name}.{key}" if name else str(key))
    elif isinstance(values, list | tuple):
        for idx, value in enumerate(values):
            _refuse_infinite(value, f"{name}[{idx}]")
    elif isinstance(values, float) and not math.isfinite(values):
        raise ConfigError(f"`{name}` must be a finite number, got {values}")


def _suggest_setting(prefix: str, key: str, fields: Iterable[str]) -> str:
    """The setting of another section if `key` names one exactly, else the nearest of this section."""
    sections = RunConfig.__struct_fields__
    is_of_run = prefix.partition(".")[0] in sections or tuple(fields) == sections
    elsewhere = other_section(key) if is_of_run else None
    if elsewhere not in (None, f"{prefix}{key}"):
        return f"did you mean `{elsewhere}`?"
    return suggest(key, fields)


def _chosen(kinds: list[type[msgspec.Struct]], values: Any, name: str) -> list[type[msgspec.Struct]]:
    """Of the structs that a field may hold those that these values are for: where they have tags, the one named."""
    tags = {kind.__struct_config__.tag: kind for kind in kinds if kind.__struct_config__.tag_field is not None}
    if not tags or not isinstance(values, Mapping):
        return kinds
    tag_field = next(iter(tags.values())).__struct_config__.tag_field
    if values.get(tag_field) not in tags:
        allowed = ", ".join(map(str, tags))
        raise ConfigError(f"`{name}.{tag_field}` must be one of {allowed}, got {values.get(tag_field)!r}")
    return [tags[values[tag_field]]]


def _explain(error: msgspec.ValidationError, values: Any, kind: Any) -> str:
    """Words a message of msgspec as «what must be, got», with the value it saw and the words allowed."""
    message, _, path = str(error).partition(" - at `$")
    keys = re.findall(r"[^.\[\]`]+", path)
    for key in keys:
        values = values[int(key)] if isinstance(values, list | tuple) else values.get(key)
        kind = get_type_hints(kind).get(key) if isinstance(kind, type) else None
    where = f"`{'.'.join(keys)}`" if keys else "the settings"
    allowed = message.removeprefix("Expected ").split(", got ")[0]
    if message == "Number out of range":
        return f"{where} must be a finite number, got one of more than 300 digits"
    if missing := re.match(r"Object missing required field (`\w+`)", message):
        return f"{where} must have the field {missing[1]}, got {values!r}"
    if message.startswith("Invalid enum value"):
        allowed = f"one of {', '.join(_words(kind))}"
    return f"{where} must be {allowed}, got {values!r}"


def _words(kind: Any) -> list[str]:
    """Returns the values that a field of words may hold, as settings files spell them."""
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    if kind is bool:
        return ["true", "false"]
    return [word for part in get_args(kind) for word in _words(part)]
