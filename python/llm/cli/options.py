"""Options of the command line, derived from the settings structs."""

import functools
import inspect
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
import typer
import typer.core

from llm.errors import ConfigError, LLMError, LLMWarning
from llm.settings.engine import DraftSpeculation, EngineConfig, NgramSpeculation, Speculation
from llm.settings.fields import declared, default_of
from llm.settings.merge import validated

Path = Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint, run or .gguf file.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]

# Settings of the engine that are options of every command that runs a model.
ENGINE_OPTIONS = ("max_model_len", "kv_cache_dtype", "packed_weights", "tensor_parallel_size")

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)

Command = Callable[..., None]


class NamingOptions(typer.core.TyperCommand):
    """A command whose errors name its options instead of fields: `--max-model-len` for `max_model_len`."""

    @property
    def flags(self) -> dict[str, str]:
        """The option of each parameter."""
        return {str(option.name): option.opts[0] for option in self.params if option.opts[0].startswith("--")}

    def reworded(self, message: str) -> str:
        """Replaces the fields in a message with their options."""
        flags = self.flags
        return re.sub(r"`(\w+)`", lambda found: f"`{flags.get(found[1], found[1])}`", message)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; notes of this package are reworded too.

        Raises:
            LLMError: The command's error, reworded.
        """
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            is_own = issubclass(category, LLMWarning)
            shown(category(self.reworded(str(message))) if is_own else message, category, *place, **more)

        warnings.showwarning = show
        try:
            return super().invoke(ctx)
        except LLMError as error:
            error.args = (self.reworded(str(error)),)
            raise
        finally:
            warnings.showwarning = shown


def with_options(
    kind: type[msgspec.Struct],
    *,
    skip: Collection[str] = (),
    flags: Mapping[str, str] | None = None,
    envvars: Mapping[str, str] | None = None,
    fallback: bool = False,
) -> Callable[[Command], Command]:
    """Adds an option for each field of `kind` to a command, which receives the given ones as `**values`.

    Args:
        kind: Type, range, default and help of an option are those of its field.
        skip: Fields without an option.
        flags: Options with another name than their field.
        envvars: Environment variables that options fall back to.
        fallback: Whether values that are not given come from elsewhere first; the default is then only shown.
    """
    fields = [field for field in msgspec.structs.fields(kind) if field.name not in skip]
    names = {field.name: (flags or {}).get(field.name, _flag(field)) for field in fields}

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            for field in fields:
                value = values.pop(field.name)
                if value is not None and value is not False and value != []:  # 0 is a value
                    values[field.name] = _converted(field, value)
            command(**values)

        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
        added = [_parameter(field, names[field.name], (envvars or {}).get(field.name), fallback) for field in fields]
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*own, *added)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def with_engine_options(command: Command) -> Command:
    """Adds `ENGINE_OPTIONS` to a command, which takes them with `engine_of`."""
    return with_options(EngineConfig, skip=set(EngineConfig.__struct_fields__) - set(ENGINE_OPTIONS))(command)


def engine_of(values: dict[str, Any]) -> EngineConfig:
    """Takes `ENGINE_OPTIONS` out of `values` and returns the limits that they set.

    Raises:
        ConfigError: A value that isn't allowed.
    """
    given = {name: values.pop(name) for name in ENGINE_OPTIONS if name in values}
    return validated(msgspec.structs.replace(EngineConfig(), **given))


def size_in_bytes(text: str | int) -> int:
    """`2GiB`, `500 MB` or plain bytes as a number of bytes."""
    found = _SIZE.fullmatch(str(text).strip())
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(f"must be a size such as 2GiB, 500MB or a number of bytes, got {text!r}")
    number, letter, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** ("KMGT".find(letter.upper()) + 1 if letter else 0))


def speculation(draft_model: str | None, *, ngram_drafts: bool, **count: int) -> Speculation | None:
    """The source of draft tokens that the options name.

    Raises:
        ConfigError: Options that contradict each other.
    """
    if draft_model is not None and ngram_drafts:
        raise ConfigError("draft tokens come from `--draft-model` or `--ngram-drafts`, got both\nhint: leave one out")
    if draft_model is not None:
        return DraftSpeculation(path=draft_model, **count)
    if ngram_drafts:
        return NgramSpeculation(**count)
    if count:
        raise ConfigError("`--num-draft-tokens` needs `--draft-model` or `--ngram-drafts`, got neither")
    return None


def _flag(field: msgspec.structs.FieldInfo) -> str:
    """`--max-model-len`; `--no-prefix-caching` for `enable_prefix_caching`, which is on by default."""
    name = field.name.replace("_", "-")
    return f"--no-{name.removeprefix('enable-')}" if field.default is True else f"--{name}"


def _converted(field: msgspec.structs.FieldInfo, value: Any) -> Any:
    if isinstance(value, bool):
        return not field.default
    if _is_switch_with_words(declared(field.type)[0]):
        return _BOOLS.get(value, value)
    return tuple(value) if isinstance(value, list) else value


def _is_switch_with_words(kind: Any) -> bool:
    """Whether a field is true, false, or one of some words."""
    return get_origin(kind) in (Union, UnionType) and bool in get_args(kind)


_BOOLS = {"true": True, "false": False}
_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT"}
_WIDEST = 2**16  # a wider range only says that the number fits a machine word


def _parameter(field: msgspec.structs.FieldInfo, flag: str, envvar: str | None, fallback: bool) -> inspect.Parameter:
    kind, meta = declared(field.type)
    default = default_of(field)
    about: dict[str, Any] = {"help": (meta.description or "").replace("null: ", "default: "), "envvar": envvar}
    if kind is bool:
        help_text = f"Turn off: {meta.description}" if default else meta.description
        return _option(field.name, bool, False, flag, about | {"help": help_text, "metavar": ""})
    if get_origin(kind) is tuple:
        item = declared(get_args(kind)[0])[0]
        about |= {"help": f"{about['help']} May be repeated.", "metavar": _METAVARS[item]}
        return _option(field.name, list[item] | None, None, flag, about)  # type: ignore[valid-type]
    if _is_switch_with_words(kind):
        words = next(part for part in get_args(kind) if get_origin(part) is Literal)
        kind = Literal[(*get_args(words), *_BOOLS)]
    if get_origin(kind) is Literal:
        kind, about["help"] = str, f"{(meta.description or '').removesuffix('.')}: {', '.join(get_args(kind))}."
    if field.name.endswith("_bytes"):
        about |= {"parser": size_in_bytes, "metavar": "SIZE"}
    else:
        is_shown = meta.gt is None and meta.le is not None and meta.le < _WIDEST  # typer knows no open ranges
        most = meta.le if is_shown else None
        about |= {"min": meta.ge, "max": most, "metavar": (meta.extra or {}).get("metavar", _METAVARS[kind])}
    if fallback:
        about["show_default"] = default is not None and str(default)
        default = None
    return _option(field.name, kind | None, default, flag, about)


def _option(name: str, kind: Any, default: Any, flag: str, about: dict[str, Any]) -> inspect.Parameter:
    annotation = Annotated[kind, typer.Option(flag, **about)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
