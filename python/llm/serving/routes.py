"""The routes of the server: a path, its methods and the function that handles each."""

from collections.abc import Awaitable, Callable
from functools import partial

from llm.serving.endpoints import operations
from llm.serving.endpoints.generate import CHAT, COMPLETIONS, handle
from llm.serving.http import Exchange
from llm.serving.services import Services

Handler = Callable[[Services, Exchange], Awaitable[None]]

MODEL_PATH = operations.MODEL_PATH_PREFIX + "{id}"
ROUTES: dict[str, dict[str, Handler]] = {
    "/health": {"GET": operations.health},
    "/metrics": {"GET": operations.metrics},
    "/v1/models": {"GET": operations.models},
    MODEL_PATH: {"GET": operations.model},
    "/v1/chat/completions": {"POST": partial(handle, CHAT)},
    "/v1/completions": {"POST": partial(handle, COMPLETIONS)},
}
OPEN_ROUTES = frozenset({"/health", "/metrics"})


def route_of(path: str) -> str | None:
    """Returns the route of a request's path, or None if no route has it."""
    if path.startswith(operations.MODEL_PATH_PREFIX):
        return MODEL_PATH
    return path if path in ROUTES else None
