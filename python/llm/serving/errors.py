"""What went wrong with a request, in the words and shape of OpenAI's API."""

import re
from collections.abc import Sequence

import msgspec

from llm.errors import (
    CapacityError,
    ChatTemplateError,
    ConfigError,
    ContextLengthError,
    EngineError,
    InvalidArgumentError,
    LLMError,
    QueueFullError,
    TokenizerError,
)

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"

RETRY_AFTER_S = "1"


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """The object every OpenAI client reads an error from."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """`{"error": {"message", "type", "param", "code"}}`."""

    error: ErrorBody


class APIError(Exception):
    """A request that gets an error response: HTTP status, body and extra headers."""

    def __init__(self, status: int, body: ErrorBody, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(body.message)
        self.status = status
        self.body = body
        self.headers = tuple(headers)


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> APIError:
    """A 400: the client has to change the request."""
    return APIError(400, ErrorBody(message=message, type=INVALID_REQUEST, param=param, code=code))


def unsupported(message: str, param: str) -> APIError:
    """A 400 for a parameter of OpenAI's that would change the answer and isn't honoured here."""
    return bad_request(message, param=param, code="unsupported_parameter")


def context_overflow(message: str, param: str) -> APIError:
    """A 400: prompt and new tokens together exceed the model's context."""
    return bad_request(message, param=param, code="context_length_exceeded")


def unauthorized(message: str) -> APIError:
    """A 401 that says which schemes are understood."""
    body = ErrorBody(message=message, type=INVALID_REQUEST, code="invalid_api_key")
    return APIError(401, body, [(b"www-authenticate", b"Bearer")])


def unknown_url(method: str, path: str) -> APIError:
    """A 404 for a path without a route."""
    body = ErrorBody(message=f"Invalid URL ({method} {path})", type=INVALID_REQUEST, code="unknown_url")
    return APIError(404, body)


def unknown_model(name: str, served: str) -> APIError:
    """A 404 that lists what is served."""
    message = f"The model `{name}` does not exist; this server has `{served}`"
    return APIError(404, ErrorBody(message=message, type=INVALID_REQUEST, param="model", code="model_not_found"))


def method_not_allowed(method: str, path: str, allowed: Sequence[str]) -> APIError:
    """A 405 with the `Allow` header HTTP asks for."""
    message = f"Not allowed to {method} on {path}; allowed: {', '.join(allowed)}"
    body = ErrorBody(message=message, type=INVALID_REQUEST, code="method_not_supported")
    return APIError(405, body, [(b"allow", ", ".join(allowed).encode())])


def body_too_large(limit_bytes: int) -> APIError:
    """A 413 that says the limit."""
    message = f"The request body is larger than this server's limit of {limit_bytes} bytes"
    return APIError(413, ErrorBody(message=message, type=INVALID_REQUEST, code="request_too_large"))


def overloaded(message: str) -> APIError:
    """A 429: the queue is full, and the same request may work a moment later."""
    body = ErrorBody(message=message, type="rate_limit_error", code="queue_full")
    return APIError(429, body, [(b"retry-after", RETRY_AFTER_S.encode())])


def unavailable(message: str, code: str) -> APIError:
    """A 503: no engine to answer, yet or any more."""
    body = ErrorBody(message=message, type=SERVER_ERROR, code=code)
    return APIError(503, body, [(b"retry-after", RETRY_AFTER_S.encode())])


def internal_error() -> APIError:
    """A 500 that says nothing of our insides; the log has them."""
    message = "The server had an error while processing the request; its log says more"
    return APIError(500, ErrorBody(message=message, type=SERVER_ERROR, code="internal_error"))


def from_llm_error(error: LLMError, *, prompt_param: str | None = None) -> APIError:
    """Says what an error from below means for the client.

    Args:
        error: What the tokenizer or the engine raised.
        prompt_param: The field that holds the prompt on this route (`messages` or `prompt`).
    """
    message = str(error)
    match error:
        case ContextLengthError():
            answer = context_overflow(message, prompt_param or "max_tokens")
        case QueueFullError():
            answer = overloaded(message)
        case CapacityError():  # larger than the cache: it will never fit
            answer = bad_request(message, param="max_tokens")
        case ChatTemplateError():
            answer = bad_request(message, param=prompt_param)
        case ConfigError() | InvalidArgumentError() | TokenizerError():
            named = re.match(r"`(\w+)`", message)  # a value at fault is named first, anything else is the prompt
            answer = bad_request(message, param=named[1] if named else prompt_param)
        case EngineError():
            answer = APIError(500, ErrorBody(message=message, type=SERVER_ERROR, code="engine_error"))
        case _:
            answer = internal_error()
    return answer
