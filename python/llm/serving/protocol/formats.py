"""Types of `response_format`."""

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from llm.serving.protocol.described import UNUSED


class TextFormat(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class NamedSchema(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON schema with a name; the answer follows it whether or not it is `strict`."""

    schema: Annotated[dict[str, Any] | bool, Meta(description="The answer's JSON Schema.")]
    name: Annotated[str, Meta(min_length=1), UNUSED] | None = None
    description: Annotated[str | None, UNUSED] = None
    strict: Annotated[bool | None, UNUSED] = None


class JsonSchemaFormat(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    """JSON of a schema."""

    json_schema: NamedSchema


ResponseFormat: TypeAlias = TextFormat | JsonObjectFormat | JsonSchemaFormat
FORMAT_TYPES = ("text", "json_object", "json_schema")
