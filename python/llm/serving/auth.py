"""API keys: `Authorization: Bearer KEY` as OpenAI's clients send it, or `X-API-Key: KEY`.

Without keys every request is let in. `/health` and `/metrics` are open always: probes and scrapers carry no secrets,
and neither answer holds any.
"""

import hmac
from collections.abc import Mapping, Sequence

from llm.serving.errors import unauthorized

_BEARER = "bearer "
_HINT = "send `Authorization: Bearer KEY` or `X-API-Key: KEY`"


class Authenticator:
    """Checks a request's key against the ones allowed."""

    def __init__(self, api_keys: Sequence[str]) -> None:
        self._api_keys = tuple(key.encode() for key in api_keys)

    def check(self, headers: Mapping[str, str]) -> None:
        """Lets a request pass or not.

        Args:
            headers: The request's headers by lower-case name.

        Raises:
            APIError: 401, no key or a wrong one; the message never holds what was sent.
        """
        if not self._api_keys:
            return
        sent = _sent_key(headers)
        if sent is None:
            raise unauthorized(f"No API key was given\nhint: {_HINT}")
        # All keys are compared, each in constant time, so that timing tells neither a key's start nor its place.
        matches = [hmac.compare_digest(sent.encode("latin-1"), key) for key in self._api_keys]
        if not any(matches):
            raise unauthorized("The API key given is not valid\nhint: ask whoever runs this server for one")


def _sent_key(headers: Mapping[str, str]) -> str | None:
    authorization = headers.get("authorization", "")
    if authorization.lower().startswith(_BEARER):
        return authorization[len(_BEARER) :].strip()
    return headers.get("x-api-key")
