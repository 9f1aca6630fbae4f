"""Which web pages may use the server, and under which names it answers.

**Without an API key**, any page that a browser on this machine shows could send requests here: CORS keeps the page from
reading an answer, not from causing the work. A request that names a page's origin is therefore refused unless that
origin is allowed or is the server itself. A page can also point its own domain at this machine (DNS rebinding) and is
then of the same origin, so a server on loopback answers only to `localhost`, to IP addresses and to allowed names.

**With API keys**, no page can send a key that it doesn't know, and neither check is made.
"""

import ipaddress
import re
from functools import lru_cache

from llm.serving.errors import APIError, forbidden
from llm.serving.http import Exchange, Header
from llm.settings.server import ServerConfig

_ANY = "*"
_PORT = re.compile(r":\d*$")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,4096}")
_DEFAULT_HEADERS = "authorization, content-type, x-api-key"
_EXPOSED_HEADERS = ", ".join(
    ["x-request-id", "retry-after"]
    + [f"x-ratelimit-{part}-{kind}" for kind in ("requests", "tokens") for part in ("limit", "remaining", "reset")]
)
_PREFLIGHT_AGE_S = 600


class Guard:
    """Refuses requests of web pages that aren't allowed, and answers the others with CORS headers."""

    def __init__(self, config: ServerConfig) -> None:
        self._origins = frozenset(config.allowed_origins)
        self._hosts = frozenset(host.lower() for host in config.allowed_hosts)
        # Whoever listens on a network without naming hosts is reached under names that only that network knows.
        self._is_any_host = _ANY in self._hosts or (not self._hosts and not _is_loopback(config.host))
        self._is_known_host = lru_cache(maxsize=256)(self._is_named)

    def check(self, exchange: Exchange) -> None:
        """Checks the `Host` and `Origin` of a request to a server without keys.

        Raises:
            APIError: 403 with the option that allows the request.
        """
        host = exchange.headers.get("host", "")
        if not self._is_known_host(host):
            raise _unknown_host(host)
        origin = exchange.headers.get("origin")
        if origin is None or self._is_allowed(origin) or origin.partition("://")[2].lower() == host.lower():
            return
        raise _unknown_origin(origin)

    def cors_headers(self, exchange: Exchange) -> list[Header]:
        """Returns the headers that let a page of an allowed origin read the answer; none for other pages."""
        origin = exchange.headers.get("origin")
        if origin is None or not self._is_allowed(origin):
            return []
        allowed = _ANY if _ANY in self._origins else origin
        headers = [
            (b"access-control-allow-origin", allowed.encode("latin-1")),
            (b"access-control-expose-headers", _EXPOSED_HEADERS.encode()),
            (b"vary", b"origin"),
        ]
        if exchange.method == "OPTIONS":
            headers += _preflight_headers(exchange.headers.get("access-control-request-headers", ""))
        return headers

    def _is_allowed(self, origin: str) -> bool:
        return origin in self._origins or _ANY in self._origins

    def _is_named(self, host: str) -> bool:
        if self._is_any_host or not host:  # only clients that aren't browsers leave the name out
            return True
        name = _PORT.sub("", host.lower()).rstrip(".")
        return name in self._hosts or name == "localhost" or name.endswith(".localhost") or _is_address(name)


def _preflight_headers(asked: str) -> list[Header]:
    """Allows every header that the page asks for: the server reads few of them, and a client may send any."""
    names = asked if _HEADER_NAMES.fullmatch(asked) else _DEFAULT_HEADERS
    return [
        (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
        (b"access-control-allow-headers", names.encode()),
        (b"access-control-max-age", str(_PREFLIGHT_AGE_S).encode()),
    ]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_address(name: str) -> bool:
    """Whether a name is an IP address, which no page can point elsewhere."""
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _unknown_host(host: str) -> APIError:
    shown = _PORT.sub("", host)[:200]
    return forbidden(
        f"This server doesn't answer to the host name {shown!r}\n"
        f"hint: start it with `--allowed-hosts {shown}`, or with `--api-key`",
        "host_not_allowed",
    )


def _unknown_origin(origin: str) -> APIError:
    shown = origin[:200]
    return forbidden(
        f"Web pages of the origin {shown!r} may not use this server\n"
        f"hint: start it with `--allowed-origins {shown}`, or with `--api-key`",
        "origin_not_allowed",
    )
