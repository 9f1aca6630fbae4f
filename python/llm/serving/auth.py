"""API keys, sent as `Authorization: Bearer KEY` (as OpenAI's clients do) or `X-API-Key: KEY`.

Without configured keys, every request is accepted. `/health` and `/metrics` never need a key: probes and scrapers carry
no secrets, and neither response contains any. Only digests of the keys are kept.
"""

import hashlib
import hmac
import logging
from collections.abc import Mapping, Sequence

from llm.errors import ConfigError
from llm.serving.errors import unauthorized
from llm.serving.limits import KeyUsage
from llm.settings.keys import ApiKey, checked_key, read_key_file

logger = logging.getLogger(__name__)

_BEARER = "bearer "
_HINT = "send `Authorization: Bearer KEY` or `X-API-Key: KEY`"


class Authenticator:
    """Finds the API key of a request among the accepted keys.

    Args:
        api_keys: Keys or their `sha256:…` digests, without limits.
        key_file: A TOML file of keys with limits.

    Raises:
        ConfigError: The file or a digest is invalid.
    """

    def __init__(self, api_keys: Sequence[str], key_file: str | None = None) -> None:
        self._given = {f"api-key-{number}": checked_key(text, "an API key") for number, text in enumerate(api_keys, 1)}
        self._key_file = key_file
        self._usages: dict[bytes, KeyUsage] = {}
        self._replace(self._read())

    @property
    def is_open(self) -> bool:
        """Whether every request is accepted."""
        return not self._usages

    def reload(self) -> None:
        """Reads the key file again; an invalid file is logged and leaves the keys as they are.

        A key whose table hasn't changed keeps what it has used of its limits. Running requests go on.
        """
        try:
            keys = self._read()
        except ConfigError as error:
            logger.error("api keys not reloaded, the old ones stay: %s", str(error).replace("\n", "; "))
            return
        self._replace(keys)
        logger.info("api keys reloaded keys=%d", len(keys))

    def check(self, headers: Mapping[str, str]) -> KeyUsage | None:
        """Returns the key in a request's headers; None if the server needs no key.

        Args:
            headers: The request's headers by lower-case name.

        Raises:
            APIError: 401 if the key is missing or wrong; the message never contains the key that was sent.
        """
        if not self._usages:
            return None
        sent = _sent_key(headers)
        if sent is None:
            raise unauthorized(f"No API key was given\nhint: {_HINT}")
        digest = hashlib.sha256(sent.encode("latin-1")).digest()
        # All digests are compared, each in constant time, so that timing reveals neither a digest nor its position.
        matches = [usage for known, usage in self._usages.items() if hmac.compare_digest(digest, known)]
        if not matches:
            raise unauthorized("The API key is not valid\nhint: ask the operator of this server for a key")
        return matches[0]

    def _read(self) -> dict[str, ApiKey]:
        return self._given | (read_key_file(self._key_file) if self._key_file else {})

    def _replace(self, keys: Mapping[str, ApiKey]) -> None:
        kept = {usage.name: usage for usage in self._usages.values()}
        fresh = [
            kept[name] if name in kept and kept[name].key == key else KeyUsage(name, key) for name, key in keys.items()
        ]
        self._usages = {usage.key.digest: usage for usage in fresh}


def _sent_key(headers: Mapping[str, str]) -> str | None:
    authorization = headers.get("authorization", "")
    if authorization.lower().startswith(_BEARER):
        return authorization[len(_BEARER) :].strip()
    return headers.get("x-api-key")
