"""The chat page: `/` and the files that it loads from `/static/`, read once from the installed package."""

import hashlib
from importlib import resources

import msgspec

from llm.serving.errors import unknown_url
from llm.serving.http import Exchange, Header
from llm.serving.services import Services

_CONTENT_TYPES = {
    "css": b"text/css; charset=utf-8",
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}

# The page loads and calls nothing but this server, and no text of a model can become script or markup.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: tuple[Header, ...] = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),  # kept by the browser, but checked by its ETag: an upgrade shows at once
)


class Asset(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the page."""

    body: bytes
    content_type: bytes
    etag: str


def _asset(name: str, body: bytes) -> Asset:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return Asset(body=body, content_type=_CONTENT_TYPES[name.rpartition(".")[2]], etag=etag)


ASSETS = {
    file.name: _asset(file.name, file.read_bytes())
    for file in resources.files("llm.serving").joinpath("static").iterdir()
}
INDEX = "index.html"
_OF_DOCS = {"docs.css", "icon.svg"}  # served without the chat page too


async def page_file(name: str, services: Services, exchange: Exchange) -> None:
    """Handles `GET /` and `GET /static/NAME`: the file, or 304 if the browser has it already.

    Raises:
        APIError: 404 if the settings turn the chat page off.
    """
    if not services.config.chat_page and name not in _OF_DOCS:
        raise unknown_url(exchange.method, exchange.shown_path)
    asset = ASSETS[name]
    headers = (*HEADERS, (b"etag", asset.etag.encode()))
    if asset.etag in _tags(exchange.headers.get("if-none-match", "")):
        await exchange.send_bytes(b"", None, status=304, headers=headers)
        return
    await exchange.send_bytes(asset.body, asset.content_type, headers=headers)


def _tags(header: str) -> set[str]:
    """Returns the tags of `If-None-Match`; a proxy that compresses marks them as weak."""
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}
