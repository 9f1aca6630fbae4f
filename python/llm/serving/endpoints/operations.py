"""Endpoints about the server itself: its health, metrics and model."""

from llm._rust import __version__ as VERSION
from llm.serving.http import Exchange
from llm.serving.metrics import CONTENT_TYPE
from llm.serving.protocol.models import ModelList, Version
from llm.serving.services import Services


async def health(services: Services, exchange: Exchange) -> None:
    """Handles `GET /health`: 200 if the model can answer requests, otherwise 503."""
    state = services.engine.health
    await exchange.send_json(state, status=200 if state.status == "ok" else 503)


async def metrics(services: Services, exchange: Exchange) -> None:
    """Handles `GET /metrics` in Prometheus format."""
    await exchange.send_bytes(services.metrics.exposition(), CONTENT_TYPE)


async def models(services: Services, exchange: Exchange) -> None:
    """Handles `GET /v1/models`: lists the model under each of its names."""
    await exchange.send_json(ModelList(data=list(services.models.values())))


async def model(services: Services, exchange: Exchange) -> None:
    """Handles `GET /v1/models/{id}`; the id may contain slashes."""
    await exchange.send_json(services.check_model(exchange.path_parameters["id"]))


async def version(services: Services, exchange: Exchange) -> None:  # noqa: ARG001 - the same for every server
    """Handles `GET /version`."""
    await exchange.send_json(Version(version=VERSION))
