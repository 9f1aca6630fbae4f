"""Endpoints about the server itself: its health, metrics and model."""

from llm.serving.http import Exchange
from llm.serving.metrics import CONTENT_TYPE
from llm.serving.protocol.models import ModelList
from llm.serving.services import Services


async def health(services: Services, exchange: Exchange) -> None:
    """Handles `GET /health`: 200 if the model can answer requests, otherwise 503."""
    state = services.engine.health
    await exchange.send_json(state, status=200 if state.status == "ok" else 503)


async def metrics(services: Services, exchange: Exchange) -> None:
    """Handles `GET /metrics` in Prometheus format."""
    await exchange.send_bytes(services.metrics.exposition(), CONTENT_TYPE)


async def models(services: Services, exchange: Exchange) -> None:
    """Handles `GET /v1/models`: lists the one model served."""
    await exchange.send_json(ModelList(data=[services.model]))


async def model(services: Services, exchange: Exchange) -> None:
    """Handles `GET /v1/models/{id}`; the id may contain slashes."""
    services.check_model(exchange.path_parameters["id"])
    await exchange.send_json(services.model)
