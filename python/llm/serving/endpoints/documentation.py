"""The API's description: `/openapi.json` for programs, `/docs` for readers."""

from llm.serving.endpoints import page
from llm.serving.http import Exchange
from llm.serving.openapi.document import encoded_document
from llm.serving.openapi.html import docs_page
from llm.serving.services import Services


async def openapi(_services: Services, exchange: Exchange) -> None:
    """Handles `GET /openapi.json`."""
    await exchange.send_bytes(encoded_document(), b"application/json", headers=((b"cache-control", b"no-cache"),))


async def docs(_services: Services, exchange: Exchange) -> None:
    """Handles `GET /docs`."""
    await exchange.send_bytes(docs_page(), b"text/html; charset=utf-8", headers=page.HEADERS)
