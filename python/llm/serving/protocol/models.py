"""Types of `/v1/models`, `/health` and `/version`."""

from typing import Literal

import msgspec


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that the server serves."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "llm-oxide"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/v1/models`."""

    data: list[Model]
    object: Literal["list"] = "list"


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/version`."""

    version: str


class Health(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The response of `/health`."""

    status: Literal["ok", "loading", "draining", "failed"]
    reason: str | None = None
