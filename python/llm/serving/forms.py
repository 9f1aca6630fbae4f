"""Parses the requests of APIs whose requests become chat requests."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic

import msgspec

from llm.serving.known_keys import ACCEPTED, REFUSED, Refused
from llm.serving.parsing import RequestT, UnknownKeys, check_refused, convert, parse_object
from llm.serving.protocol.chat import ChatCompletionRequest


class RequestForm(msgspec.Struct, Generic[RequestT], frozen=True, kw_only=True):
    """How to parse the requests of an API.

    Attributes:
        request_type: The type of a request.
        refused: Keys of this API, beside those of `known_keys`, that would change the answer and aren't supported.
        names: The names that the fields of a chat request have in this API.
        accepted: Keys of this API that leave the answer as it is.
        allowed: The allowed values of enumerated fields, by the end of the field's path without indices.
        check: Refuses what the types can't name.
    """

    request_type: type[RequestT]
    refused: Mapping[str, Refused]
    names: Mapping[str, str]
    accepted: frozenset[str]
    allowed: Mapping[str, tuple[str, ...]]
    check: Callable[[dict[str, Any]], None]


def parse_form(body: bytes, form: RequestForm[RequestT], unknown_keys: UnknownKeys) -> RequestT:
    """Parses a request's body and checks its keys and types.

    Raises:
        APIError: 400, with the name of the invalid parameter if there is one.
    """
    raw = parse_object(body)
    form.check(raw)
    known = form.accepted.union(form.request_type.__struct_encode_fields__)
    chat_fields = {name: Refused(_hint(form.names.get(name))) for name in ChatCompletionRequest.__struct_fields__}
    refused = {**chat_fields, **REFUSED, **form.refused}
    check_refused(raw, refused, known)
    request = convert(raw, form.request_type, form.allowed)
    known |= refused.keys() | ACCEPTED
    unknown_keys.handle((key for key in raw if key not in known), known)
    return request


def objects_in(raw: Mapping[str, Any], field: str, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place and value of each object in a field that may be a list; types are checked later.

    Args:
        raw: The object that has the field.
        field: Name of the field.
        where: The object's own place in the request.
    """
    items = raw.get(field)
    for position, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict):
            yield f"{where}{'.' if where else ''}{field}[{position}]", item


def _hint(name: str | None) -> str:
    return "" if name is None else f"send `{name}`"
