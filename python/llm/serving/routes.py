"""The routes of the server: a path, its methods and the function that handles each."""

import re
from collections.abc import Awaitable, Callable
from functools import partial

from llm.serving.endpoints import (
    adapters,
    documentation,
    embeddings,
    messages,
    operations,
    page,
    responses,
    scores,
    tokenize,
)
from llm.serving.endpoints.generate import CHAT, COMPLETIONS, handle
from llm.serving.http import OPENAI_ERRORS, ErrorFormat, Exchange
from llm.serving.services import Services

Handler = Callable[[Services, Exchange], Awaitable[None]]

# What a browser shows; these routes are no operations of the API.
PAGE_ROUTES: dict[str, dict[str, Handler]] = {
    "/": {"GET": partial(page.page_file, page.INDEX)},
    **{f"/static/{name}": {"GET": partial(page.page_file, name)} for name in page.ASSETS},
    "/openapi.json": {"GET": documentation.openapi},
    "/docs": {"GET": documentation.docs},
}
# `{name}` in a path stands for one segment, `{name:path}` for the rest of the path, slashes included.
ROUTES: dict[str, dict[str, Handler]] = {
    "/health": {"GET": operations.health},
    "/ready": {"GET": operations.health},
    "/ping": {"GET": operations.health},
    "/version": {"GET": operations.version},
    "/metrics": {"GET": operations.metrics},
    "/v1/models": {"GET": operations.models},
    "/v1/models/{id:path}": {"GET": operations.model},
    "/v1/load_lora_adapter": {"POST": adapters.load},
    "/v1/unload_lora_adapter": {"POST": adapters.unload},
    "/v1/chat/completions": {"POST": partial(handle, CHAT)},
    "/v1/completions": {"POST": partial(handle, COMPLETIONS)},
    "/v1/responses": {"POST": responses.create},
    "/v1/responses/{id}": {"GET": responses.retrieve, "DELETE": responses.delete},
    "/v1/responses/{id}/cancel": {"POST": responses.cancel},
    "/v1/responses/{id}/input_items": {"GET": responses.list_input},
    "/v1/messages": {"POST": messages.create},
    "/v1/messages/count_tokens": {"POST": messages.count_tokens},
    "/v1/embeddings": {"POST": embeddings.embeddings},
    "/v1/score": {"POST": scores.score},
    "/v1/rerank": {"POST": embeddings.rerank},
    "/tokenize": {"POST": tokenize.tokenize},
    "/detokenize": {"POST": tokenize.detokenize},
    "/tokenizer_info": {"GET": tokenize.tokenizer_info},
    **PAGE_ROUTES,
}
OPEN_ROUTES = frozenset({"/health", "/ready", "/ping", "/metrics", *PAGE_ROUTES})


def _pattern(route: str) -> re.Pattern[str]:
    """Returns the pattern of a route with parameters in its path."""
    steps = {"": r"[^/]+", "path": r".+"}
    return re.compile(re.sub(r"\{(\w+):?(\w*)\}", lambda step: f"(?P<{step[1]}>{steps[step[2]]})", route), re.DOTALL)


_PATTERNS = {route: _pattern(route) for route in ROUTES if "{" in route}


def route_of(path: str) -> tuple[str | None, dict[str, str]]:
    """Returns the route of a request's path, or None if no route has it, and the parameters in the path."""
    if path in ROUTES and path not in _PATTERNS:
        return path, {}
    for route, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(path):
            return route, match.groupdict()
    return None, {}


def error_format_of(path: str) -> ErrorFormat:
    """Returns how the API that a path belongs to reports errors, also on paths that it doesn't have."""
    return messages.ERRORS if f"{path}/".startswith("/v1/messages/") else OPENAI_ERRORS


def meant_path(path: str) -> str | None:
    """Returns the path that a client meant whose base URL lacks `/v1`, doubles it or holds more; None for no route."""
    *_, tail = path.rpartition("/v1")
    parts = tail.strip("/").split("/")
    candidates = (base + "/".join(parts[start:]) for base in ("/v1/", "/") for start in range(len(parts)))
    return next((candidate for candidate in candidates if route_of(candidate)[0] is not None), None)
