"""The settings of several servers that Ray Serve runs."""

import os
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from llm.errors import ConfigError
from llm.settings.merge import assign, from_builtins
from llm.settings.server import ServerConfig, load_server_config


class ReplicaConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many servers of a checkpoint there are, and what each has.

    Attributes:
        server: The settings of each server; host, port and TLS are Ray's.
    """

    model: Annotated[str, Meta(min_length=1, description="Checkpoint or run, at the same path on every machine.")]
    name: Annotated[str, Meta(min_length=1, description="The model's name; null: its directory's.")] | None = None
    min_replicas: Annotated[int, Meta(ge=1, description="Fewest servers.")] = 1
    max_replicas: Annotated[int, Meta(ge=1, description="Most servers.")] = 1
    num_cpus: Annotated[float, Meta(gt=0, description="CPU cores of a server.")] = 1.0
    num_gpus: Annotated[float, Meta(ge=0, description="GPUs of a server.")] = 0.0
    target_in_flight: (
        Annotated[float, Meta(gt=0, description="Requests in progress a server to aim at; null: half of what it runs.")]
        | None
    ) = None
    target_waiting: Annotated[float, Meta(gt=0, description="Waiting requests a server to aim at.")] = 2.0
    server: Annotated[ServerConfig, Meta(description="Settings of each server.")] = ServerConfig()

    def __post_init__(self) -> None:
        """Checks the rule across fields.

        Raises:
            ConfigError: `max_replicas` is less than `min_replicas`, or the servers would share a file.
        """
        if self.max_replicas < self.min_replicas:
            raise ConfigError(
                f"`max_replicas` must be at least `min_replicas`, got {self.max_replicas} and {self.min_replicas}"
            )
        if self.server.response_store is not None:
            raise ConfigError("`server.response_store` must be null: a file of responses belongs to one server")

    @property
    def aim(self) -> float:
        """Requests in progress a server to aim at."""
        return self.target_in_flight or max(self.server.engine.max_running_requests / 2, 1.0)


def replica_config(arguments: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> ReplicaConfig:
    """Reads what `serve run` passes on: texts from its command line, or values from a file of applications.

    Args:
        arguments: Fields of `ReplicaConfig`; `server` as a map, or as dotted names (`server.engine.max_model_len`).
        environ: Variables of the server's settings; the process's own by default.

    Raises:
        ConfigError: An unknown name (the nearest valid one is named), a wrong type or a value out of range.
    """
    values: dict[str, Any] = {}
    for dotted, value in arguments.items():
        assign(values, dotted, _plain(dotted, value))
    own = values.pop("server", {})
    server = load_server_config(None, own, os.environ if environ is None else environ)
    return from_builtins(values | {"server": msgspec.to_builtins(server)}, ReplicaConfig)


def _plain(dotted: str, value: Any) -> Any:
    """Returns a number, a list or a flag for its text; paths and names stay texts, also if they look like numbers."""
    if not isinstance(value, str) or dotted in {"model", "name"}:
        return value
    try:
        return msgspec.json.decode(value)
    except msgspec.DecodeError:
        return value
