"""Types of `/v1/models`, `/health` and `/version`."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that the server serves."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "llm-oxide"


class AdapterModel(Model, frozen=True, kw_only=True):
    """An adapter that the server serves as a model.

    Attributes:
        root: Its directory.
        parent: The model that it changes.
    """

    root: str
    parent: str


class LoadAdapterRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/v1/load_lora_adapter`."""

    lora_name: Annotated[
        str, Meta(min_length=1, max_length=256, description="The adapter's name, which requests give as `model`.")
    ]
    lora_path: Annotated[
        str, Meta(min_length=1, description="Directory of the adapter, or of a run, on the server's machine.")
    ]


class UnloadAdapterRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/v1/unload_lora_adapter`."""

    lora_name: Annotated[str, Meta(min_length=1, description="The adapter's name.")]


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
