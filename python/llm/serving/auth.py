"""API keys, sent as `Authorization: Bearer KEY` (as OpenAI's clients do) or `X-API-Key: KEY`.

Without configured keys, every request is accepted. `/health` and `/metrics` never need a key: probes and scrapers carry
no secrets, and neither response contains any.
"""

import hmac
from collections.abc import Mapping, Sequence

from llm.serving.errors import unauthorized

_BEARER = "bearer "
_HINT = "send `Authorization: Bearer KEY` or `X-API-Key: KEY`"


class Authenticator:
    """Checks the API key of a request against the allowed keys."""

    def __init__(self, api_keys: Sequence[str]) -> None:
        self._api_keys = tuple(key.encode() for key in api_keys)

    def check(self, headers: Mapping[str, str]) -> None:
        """Checks the key in a request's headers.

        Args:
            headers: The request's headers by lower-case name.

        Raises:
            APIError: 401 if the key is missing or wrong; the message never contains the key that was sent.
        """
        if not self._api_keys:
            return
        sent = _sent_key(headers)
        if sent is None:
            raise unauthorized(f"No API key was given\nhint: {_HINT}")
        # All keys are compared, each in constant time, so that timing reveals neither a key's prefix nor its position.
        matches = [hmac.compare_digest(sent.encode("latin-1"), key) for key in self._api_keys]
        if not any(matches):
            raise unauthorized("The API key is not valid\nhint: ask the operator of this server for a key")


def _sent_key(headers: Mapping[str, str]) -> str | None:
    authorization = headers.get("authorization", "")
    if authorization.lower().startswith(_BEARER):
        return authorization[len(_BEARER) :].strip()
    return headers.get("x-api-key")
