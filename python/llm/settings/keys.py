"""The API keys of a server and their limits, read from a TOML file."""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from llm.errors import ConfigError
from llm.settings.merge import from_builtins, read_toml

DIGEST_PREFIX = "sha256:"

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # a name ends up in log lines, so it can't hold a space or a newline
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_DIGEST_HINT = 'hint: printf %s "$KEY" | sha256sum'


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of a key file."""

    key: Annotated[
        str, Meta(min_length=1, description="The key, or `sha256:` and the key's SHA-256 digest in hexadecimal.")
    ]
    requests_per_minute: Annotated[int, Meta(ge=1, description="POST requests per minute; null: no limit.")] | None = (
        None
    )
    tokens_per_minute: (
        Annotated[int, Meta(ge=1, description="Prompt and generated tokens per minute; null: no limit.")] | None
    ) = None
    concurrent_requests: (
        Annotated[int, Meta(ge=1, description="POST requests in progress at once; null: no limit.")] | None
    ) = None

    def __repr__(self) -> str:
        """Leaves the key out: a config ends up in tracebacks and logs."""
        return (
            f"ApiKey(key=<hidden>, requests_per_minute={self.requests_per_minute}, "
            f"tokens_per_minute={self.tokens_per_minute}, concurrent_requests={self.concurrent_requests})"
        )

    @property
    def digest(self) -> bytes:
        """The SHA-256 digest of the key."""
        if self.key.startswith(DIGEST_PREFIX):
            return bytes.fromhex(self.key.removeprefix(DIGEST_PREFIX))
        return hashlib.sha256(self.key.encode()).digest()

    @property
    def is_limited(self) -> bool:
        """Whether any limit is set."""
        return (self.requests_per_minute, self.tokens_per_minute, self.concurrent_requests) != (None, None, None)

    def hashed(self) -> "ApiKey":
        """Returns the key with its digest in place of its text."""
        return msgspec.structs.replace(self, key=DIGEST_PREFIX + self.digest.hex())


def read_key_file(path: str) -> dict[str, ApiKey]:
    """Reads the keys of a TOML file, each a table with the key's name; only digests are kept.

    Raises:
        ConfigError: The file can't be read, holds no key, or a table is invalid; the message never shows a key.
    """
    tables = read_toml(Path(path))
    if not tables:
        raise ConfigError(f'{path} holds no API key\nhint: add a table: [NAME] and key = "…"')
    keys = {name: _key_of(path, name, table) for name, table in tables.items()}
    _refuse_twins(path, keys)
    return keys


def checked_key(text: str, where: str) -> ApiKey:
    """Returns an `ApiKey` without limits for a key or a digest.

    Raises:
        ConfigError: The digest is malformed; the message never shows the key.
    """
    _check_digest(text, where)
    return ApiKey(key=text).hashed()


def _key_of(path: str, name: str, table: Any) -> ApiKey:
    where = f"{path}: key {name!r}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where} must be named by 1 to 64 letters, digits, `_`, `.` or `-`")
    if not isinstance(table, dict) or not isinstance(table.get("key"), str) or not table["key"]:
        raise ConfigError(f'{where} must be a table with the key as a text\nhint: [{name}] and key = "…"')
    _check_digest(table["key"], where)
    try:
        return from_builtins(table, ApiKey).hashed()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _check_digest(text: str, where: str) -> None:
    if text.startswith(DIGEST_PREFIX) and not _DIGEST.fullmatch(text.removeprefix(DIGEST_PREFIX)):
        raise ConfigError(f"{where} must have 64 hexadecimal digits after `{DIGEST_PREFIX}`\n{_DIGEST_HINT}")


def _refuse_twins(path: str, keys: dict[str, ApiKey]) -> None:
    names: dict[str, str] = {}
    for name, key in keys.items():
        if key.key in names:
            raise ConfigError(f"{path}: keys {names[key.key]!r} and {name!r} are the same\nhint: give each its own key")
        names[key.key] = name
