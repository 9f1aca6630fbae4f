"""Error responses in the form of OpenAI's API."""

import re
from collections.abc import Mapping, Sequence

import msgspec

from llm.errors import (
    CapacityError,
    ChatTemplateError,
    ConfigError,
    ContextLengthError,
    EngineError,
    GrammarError,
    InvalidArgumentError,
    LLMError,
    QueueFullError,
    TokenizerError,
)

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"

RETRY_AFTER_S = "1"
_CLOSE = (b"connection", b"close")  # the rest of the body is not read, so no next request can follow it


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """The `error` object that OpenAI's clients read."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an error response: `{"error": {"message", "type", "param", "code"}}`."""

    error: ErrorBody


class APIError(Exception):
    """An error that becomes an error response, with an HTTP status, a body and extra headers."""

    def __init__(self, status: int, body: ErrorBody, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(body.message)
        self.status = status
        self.body = body
        self.headers = tuple(headers)


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> APIError:
    """Returns a 400 for a request that the client has to change."""
    return APIError(400, ErrorBody(message=message, type=INVALID_REQUEST, param=param, code=code))


def unsupported(message: str, param: str) -> APIError:
    """Returns a 400 for an OpenAI parameter that is not supported and would change the answer."""
    return bad_request(message, param=param, code="unsupported_parameter")


def context_overflow(message: str, param: str) -> APIError:
    """Returns a 400 for a prompt and new tokens that together exceed the model's context."""
    return bad_request(message, param=param, code="context_length_exceeded")


def unauthorized(message: str) -> APIError:
    """Returns a 401 that names the supported authentication scheme."""
    body = ErrorBody(message=message, type=INVALID_REQUEST, code="invalid_api_key")
    return APIError(401, body, [(b"www-authenticate", b"Bearer")])


def forbidden(message: str, code: str) -> APIError:
    """Returns a 403 for a web page or a host name that may not use this server."""
    return APIError(403, ErrorBody(message=message, type=INVALID_REQUEST, code=code))


def unknown_url(method: str, path: str, meant: str | None = None) -> APIError:
    """Returns a 404 for a path without a route; `meant` is the path that a right base URL would have given."""
    message = f"Invalid URL ({method} {path})"
    if meant is not None:
        why = "the base URL ends in /v1, so that clients call" if meant.startswith("/v1/") else "the path is"
        message += f"\nhint: {why} {meant}"
    return APIError(404, ErrorBody(message=message, type=INVALID_REQUEST, code="unknown_url"))


def unknown_model(name: str, served: Sequence[str]) -> APIError:
    """Returns a 404 that lists the names of the served model."""
    message = f"The model `{name}` does not exist; this server serves {', '.join(f'`{known}`' for known in served)}"
    return APIError(404, ErrorBody(message=message, type=INVALID_REQUEST, param="model", code="model_not_found"))


def not_found(message: str, *, param: str, code: str) -> APIError:
    """Returns a 404 for something that isn't stored, or no longer."""
    return APIError(404, ErrorBody(message=message, type=INVALID_REQUEST, param=param, code=code))


def method_not_allowed(method: str, path: str, allowed: Sequence[str]) -> APIError:
    """Returns a 405 with the `Allow` header that HTTP requires."""
    message = f"Method {method} is not allowed on {path}; allowed: {', '.join(allowed)}"
    body = ErrorBody(message=message, type=INVALID_REQUEST, code="method_not_supported")
    return APIError(405, body, [(b"allow", ", ".join(allowed).encode())])


def body_too_large(limit_bytes: int) -> APIError:
    """Returns a 413 that states the limit."""
    message = f"The request body is larger than this server's limit of {limit_bytes} bytes"
    return APIError(413, ErrorBody(message=message, type=INVALID_REQUEST, code="request_too_large"))


def incomplete_body() -> APIError:
    """Returns a 400 for a body that ends early or whose chunks are malformed; most such clients are gone."""
    message = "The request body is incomplete: the connection was closed, or a chunk of it is malformed"
    return APIError(400, ErrorBody(message=message, type=INVALID_REQUEST, code="incomplete_body"), [_CLOSE])


def body_timeout(timeout_s: float) -> APIError:
    """Returns a 408 that states the time limit."""
    message = f"The request body did not arrive within {timeout_s:g} s"
    return APIError(408, ErrorBody(message=message, type=INVALID_REQUEST, code="request_timeout"), [_CLOSE])


def unsupported_encoding(encoding: str, allowed: Sequence[str]) -> APIError:
    """Returns a 415 that names the content encodings that are accepted."""
    message = f"Content-Encoding must be {' or '.join(allowed)}, got {encoding[:100]!r}"
    body = ErrorBody(message=message, type=INVALID_REQUEST, code="unsupported_encoding")
    return APIError(415, body, [(b"accept-encoding", ", ".join(allowed).encode())])


def rate_limited(message: str, kind: str, retry_after_s: int) -> APIError:
    """Returns a 429 for a key that has reached one of its limits.

    Args:
        message: Names the limit.
        kind: `requests` or `tokens`, which OpenAI's clients find in the error's type.
        retry_after_s: Seconds until the limit allows another request.
    """
    body = ErrorBody(message=message, type=kind, code="rate_limit_exceeded")
    return APIError(429, body, [(b"retry-after", str(retry_after_s).encode())])


def unavailable(message: str, code: str) -> APIError:
    """Returns a 503 for a full queue, or an engine that is still loading, is stopping or has stopped."""
    body = ErrorBody(message=message, type=SERVER_ERROR, code=code)
    return APIError(503, body, [(b"retry-after", RETRY_AFTER_S.encode())])


def draining() -> APIError:
    """Returns a 503 for a new request to a server that only finishes the running ones."""
    body = ErrorBody(message="The server is stopping and takes no new requests", type=SERVER_ERROR, code="draining")
    return APIError(503, body, [(b"retry-after", RETRY_AFTER_S.encode()), _CLOSE])


def internal_error(code: str = "internal_error") -> APIError:
    """Returns a 500 without internal details, which only the log contains."""
    message = "The server failed to process the request; its log has the details"
    return APIError(500, ErrorBody(message=message, type=SERVER_ERROR, code=code))


def with_request_id(error: APIError, request_id: str) -> APIError:
    """Returns a fault of the server with the id under which its log has the details."""
    body = msgspec.structs.replace(error.body, message=f"{error.body.message} under the request id {request_id}")
    return APIError(error.status, body, error.headers)


def from_llm_error(error: LLMError, *, prompt_param: str | None = None) -> APIError:
    """Returns the error response for an error raised by the tokenizer or the engine.

    Args:
        error: The error raised by the tokenizer or the engine.
        prompt_param: The field that holds the prompt on this route (`messages` or `prompt`).
    """
    message = str(error)
    match error:
        case ContextLengthError():
            answer = context_overflow(message, prompt_param or "max_tokens")
        case QueueFullError():
            answer = unavailable(message, "queue_full")
        case CapacityError():  # larger than the whole cache, so it can never fit
            answer = bad_request(message, param="max_tokens")
        case ChatTemplateError():
            answer = bad_request(message, param=prompt_param)
        case GrammarError():
            answer = bad_request(message, code="grammar_failed")
        case ConfigError() | InvalidArgumentError() | TokenizerError():
            named = re.match(r"`(\w+)`", message)  # the invalid parameter; without a name, the prompt is invalid
            answer = bad_request(message, param=named[1] if named else prompt_param)
        case EngineError():
            answer = internal_error("engine_error")
        case _:
            answer = internal_error()
    return answer


def renamed(error: APIError, names: Mapping[str, str]) -> APIError:
    """Returns an error with the fields that its parameter and message name under other names.

    Args:
        error: The error.
        names: The new name of each renamed field, by its path without indices; a path that begins with a dot stands
            for the end of any path that holds it.
    """
    message = re.sub(r"`([\w.\[\]]+)`", lambda path: f"`{_renamed_path(path[1], names)}`", error.body.message)
    param = None if error.body.param is None else _renamed_path(error.body.param, names)
    return APIError(error.status, msgspec.structs.replace(error.body, message=message, param=param), error.headers)


def _renamed_path(path: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        if old.startswith("."):
            path = path.replace(old, new)
        elif path == old or path.startswith((f"{old}.", f"{old}[")):
            return new + path[len(old) :]
    return path
