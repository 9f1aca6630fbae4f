"""The OpenAPI document, made from the operations and from the types that requests are parsed into."""

import re
from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec

from llm.serving.openapi.operations import OPERATIONS, Operation

EVENTS = "text/event-stream"

_JSON = "application/json"
_ERRORS = {
    400: "The request is invalid; the error names the parameter.",
    401: "The API key is missing or wrong.",
    403: "The page or host that sent the request is not allowed.",
    404: "The model or object does not exist.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The encoding of the body is not supported.",
    429: "The API key has reached a limit.",
    500: "The server failed.",
    503: "The server is loading, overloaded or stopping.",
}
_ERRORS_WITHOUT_BODY = (400, 401, 403, 404, 500, 503)
_REF = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


@cache
def document() -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document of all operations."""
    schemas, components = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for key, operation in OPERATIONS.items():
        method, route = key.split(" ")
        paths.setdefault(_PARAMETER.sub(r"{\1}", route), {})[method.lower()] = _operation(key, operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "llm-oxide",
            "version": version("llm-oxide"),
            "summary": "An HTTP API for one language model, compatible with OpenAI's and Anthropic's.",
            "license": {"name": "Apache-2.0 OR MIT", "identifier": "Apache-2.0 OR MIT"},
        },
        "servers": [{"url": "."}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


@cache
def encoded_document() -> bytes:
    """Returns the document as JSON."""
    return msgspec.json.encode(document())


def _schemas() -> tuple[dict[Any, dict[str, Any]], dict[str, Any]]:
    """Returns the schema of each type that an operation names, and the components that these refer to."""
    kinds = list(dict.fromkeys(kind for operation in OPERATIONS.values() for kind in _types_of(operation)))
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    return dict(zip(kinds, schemas, strict=True)), components


def _types_of(operation: Operation) -> list[Any]:
    kinds = (operation.request, operation.answer, operation.events, operation.error, *operation.answers.values())
    return [kind for kind in kinds if kind is not None and not isinstance(kind, str)]


def _operation(key: str, operation: Operation, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    described: dict[str, Any] = {"summary": operation.summary, "operationId": _operation_id(key)}
    if parameters := _parameters(key, operation):
        described["parameters"] = parameters
    if operation.request is not None:
        content = {_JSON: {"schema": schemas[operation.request]}}
        described["requestBody"] = {"required": True, "content": content}
    if not operation.is_open:
        described["security"] = [{"bearer": []}, {"header": []}, {}]  # a server without keys needs none
    return described | {"responses": _responses(operation, schemas)}


def _parameters(key: str, operation: Operation) -> list[dict[str, Any]]:
    string = {"type": "string", "minLength": 1}
    return [
        *({"name": name, "in": "path", "required": True, "schema": string} for name in _PARAMETER.findall(key)),
        *({"name": name, "in": "query", "schema": msgspec.json.schema(kind)} for name, kind in operation.query.items()),
    ]


def _operation_id(key: str) -> str:
    """Returns `post_v1_chat_completions` for `POST /v1/chat/completions`."""
    return re.sub(r"\W+", "_", _PARAMETER.sub(r"\1", key).lower()).strip("_")


def _responses(operation: Operation, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    statuses = _ERRORS if operation.request is not None else _ERRORS_WITHOUT_BODY
    errors = {str(status): _response(_ERRORS[status], schemas[operation.error]) for status in statuses}
    others = {str(status): _response("See the body.", schemas[kind]) for status, kind in operation.answers.items()}
    return {"200": _answer(operation, schemas)} | errors | others


def _answer(operation: Operation, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    if isinstance(operation.answer, str):
        return {"description": "The answer.", "content": {operation.answer: {"schema": {"type": "string"}}}}
    answer = _response("The answer.", schemas[operation.answer])
    if operation.events is not None:
        answer["content"][EVENTS] = {"schema": _event(schemas[operation.events])}
    return answer


def _event(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of one server-sent event, whose data is JSON, or `[DONE]` at the end."""
    data = {"type": "string", "contentMediaType": _JSON, "contentSchema": schema}
    return {"type": "object", "properties": {"event": {"type": "string"}, "data": data}, "required": ["data"]}


def _response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {_JSON: {"schema": schema}}}
