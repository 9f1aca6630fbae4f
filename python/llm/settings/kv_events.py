"""The settings of published events of the key-value cache, under the names of vLLM's `--kv-events-config`."""

import json
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llm.errors import ConfigError


class KVEventsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether and where to publish what the key-value cache stores and removes."""

    enable_kv_cache_events: Annotated[bool, Meta(description="Publish which blocks the cache stores and removes.")] = (
        False
    )
    publisher: Annotated[
        Literal["zmq", "null"] | None, Meta(description="Way of publishing; null: zmq, if events are enabled.")
    ] = None
    endpoint: Annotated[
        str, Meta(pattern="^[a-z]+://.", description="ZeroMQ address: with `*` to listen on, else to connect to.")
    ] = "tcp://*:5557"
    replay_endpoint: (
        Annotated[str, Meta(pattern="^[a-z]+://.", description="ZeroMQ address to ask for past batches; null: none.")]
        | None
    ) = None
    buffer_steps: Annotated[int, Meta(ge=1, description="Number of past batches kept for replay.")] = 10_000
    hwm: Annotated[
        int, Meta(ge=1, le=2**31 - 1, description="Batches that may wait for a slow subscriber; it misses more.")
    ] = 100_000
    max_queue_size: Annotated[
        int, Meta(ge=1, le=2**31 - 1, description="Batches that may wait to be published; more hold up the engine.")
    ] = 100_000
    topic: Annotated[str, Meta(description="Topic of all messages; llm-d reads `kv@POD_IP:PORT@MODEL`.")] = ""

    @property
    def is_on(self) -> bool:
        """Whether events are published."""
        return self.enable_kv_cache_events and self.publisher != "null"


def parsed_kv_events(text: str) -> dict[str, Any]:
    """Reads the JSON object that vLLM's `--kv-events-config` takes.

    Raises:
        ConfigError: The text is no JSON object.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"`kv_events_config` must be a JSON object, got {text!r}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"`kv_events_config` must be a JSON object, got {text!r}")
    return values
