"""Options for the form of an answer, which `llm generate` and `llm chat` share."""

import pathlib
from typing import Annotated

import msgspec
from msgspec import Meta

from llm.errors import ConfigError
from llm.settings.structured import StructuredOutputs


class FormOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The form as a person asks for it, named as in errors about it."""

    json: (
        Annotated[str, Meta(description="File with a JSON schema that the answer follows.", extra={"metavar": "FILE"})]
        | None
    ) = None
    regex: Annotated[str, Meta(description="Regular expression that the whole answer matches.")] | None = None
    grammar: (
        Annotated[str, Meta(description="File with a Lark grammar that the answer follows.", extra={"metavar": "FILE"})]
        | None
    ) = None


FORM_FLAGS = {"json": "--json-schema"}


def form_of(values: dict[str, object]) -> StructuredOutputs | None:
    """Takes the options out of `values` and returns the form that they ask for.

    Raises:
        ConfigError: There are several, or a file can't be read.
    """
    given = {name: str(values.pop(name)) for name in FormOptions.__struct_fields__ if name in values}
    if len(given) > 1:
        names = " and ".join(f"`{name}`" for name in given)
        raise ConfigError(f"an answer has one form, got {names}\nhint: leave out all but one")
    texts = {name: value if name == "regex" else _read(name, value) for name, value in given.items()}
    return msgspec.convert(texts, StructuredOutputs) if texts else None


def _read(name: str, file: str) -> str:
    try:
        return pathlib.Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"`{name}` must be a file, got {file!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"`{name}` must be a UTF-8 file, got {file!r} with an invalid byte at {error.start}"
        ) from error
