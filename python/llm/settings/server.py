"""The settings of a server."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from llm.errors import ConfigError
from llm.settings.engine import EngineConfig
from llm.settings.kv_events import KVEventsConfig
from llm.settings.merge import assign, check_variable, from_builtins, from_environment, read_toml, validated
from llm.settings.names import suggest

_ENV_PREFIX = "LLM_SERVER__"
# Options of `llm serve` that have another name than their setting, and what the setting looks like.
_OPTIONS = {
    "adapter": ("adapters", '["NAME=DIR"]'),
    "api_key": ("api_keys", '["KEY"]'),
    "draft_model": ("speculative", '{method="draft", path="DIR"}'),
    "kv_cache_memory": ("kv_cache_memory_bytes", "BYTES"),
    "ngram_drafts": ("speculative", '{method="ngram"}'),
    "no_chat_page": ("chat_page", "false"),
    "no_cuda_graphs": ("enable_cuda_graphs", "false"),
    "no_prefix_caching": ("enable_prefix_caching", "false"),
    "num_draft_tokens": ("speculative", '{method="ngram", num_draft_tokens=4}'),
}

ToolParser: TypeAlias = Literal[
    "auto", "none", "hermes", "qwen_coder", "llama3_json", "llama4_pythonic", "mistral", "deepseek", "json"
]
ReasoningParser: TypeAlias = Literal["auto", "none", "think", "mistral", "seed_oss"]


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The address of a server, its clients and its limits."""

    host: Annotated[str, Meta(min_length=1, description="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 picks a free one.")] = 8000
    api_keys: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...],
        Meta(description="Accepted API keys, or their `sha256:…` digests; none: no key is needed."),
    ] = ()
    api_key_file: (
        Annotated[str, Meta(min_length=1, description="TOML file of API keys and their limits; read again on SIGHUP.")]
        | None
    ) = None
    tls_certificate: (
        Annotated[str, Meta(min_length=1, description="PEM file of the certificate and its chain; null: plain HTTP.")]
        | None
    ) = None
    tls_key: Annotated[str, Meta(min_length=1, description="PEM file of the private key.")] | None = None
    served_model_name: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...],
        Meta(description="Names of the model for clients; none: the directory's name."),
    ] = ()
    adapters: Annotated[
        tuple[Annotated[str, Meta(pattern="^[^=]+=.+$")], ...],
        Meta(description="NAME=DIR; a request's `model` is NAME."),
    ] = ()
    adapter_loading: Annotated[bool, Meta(description="Let clients load and unload adapters.")] = False
    dtype: Annotated[str, Meta(description="Number type of the weights: auto, float32, bfloat16 or float16.")] = "auto"
    engine: Annotated[EngineConfig, Meta(description="Limits of the engine.")] = EngineConfig()
    max_body_bytes: Annotated[int, Meta(ge=1, description="Largest accepted request body.")] = 10 * 2**20
    default_max_tokens: (
        Annotated[int, Meta(ge=1, description="Length of chat answers without a limit; null: the rest of the context.")]
        | None
    ) = None
    pooling: Annotated[
        Literal["mean", "last"],
        Meta(description="How embeddings pool hidden states: the mean over all tokens, or the last token's."),
    ] = "mean"
    tool_parser: Annotated[
        ToolParser, Meta(description="How the model writes tool calls; auto: as its chat template does.")
    ] = "auto"
    reasoning_parser: Annotated[
        ReasoningParser, Meta(description="How the model marks its reasoning; auto: as its chat template does.")
    ] = "auto"
    strict_requests: Annotated[bool, Meta(description="Refuse requests with a parameter that no server knows.")] = False
    body_timeout_s: Annotated[float, Meta(gt=0.0, description="Seconds a request body may take.")] = 60.0
    write_timeout_s: Annotated[
        float, Meta(gt=0.0, description="Seconds that a client may leave an answer unread before it is cut off.")
    ] = 60.0
    allowed_origins: Annotated[
        tuple[str, ...], Meta(description="Web origins that may call from a browser (CORS); `*` for all.")
    ] = ()
    allowed_hosts: Annotated[
        tuple[str, ...],
        Meta(description="Host names that a server without keys answers to, beside localhost and IPs; `*` for all."),
    ] = ()
    chat_page: Annotated[bool, Meta(description="Whether `/` is a page to chat with the model in a browser.")] = True
    drain_delay_s: Annotated[
        float, Meta(ge=0.0, description="Seconds in which a stopping server takes requests while `/health` is 503.")
    ] = 0.0
    grace_s: Annotated[float, Meta(ge=0.0, description="Seconds given to running requests when the server stops.")] = (
        10.0
    )
    response_store: Annotated[str, Meta(min_length=1, description="File for responses; null: memory.")] | None = None
    response_store_max_count: Annotated[int, Meta(ge=0, description="Largest number of stored responses.")] = 10_000
    response_store_max_bytes: Annotated[int, Meta(ge=0, description="Total size of stored responses.")] = 256 * 2**20
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"], Meta(description="Least severe messages to log.")
    ] = "info"
    log_format: Annotated[Literal["text", "json"], Meta(description="Form of a log line.")] = "text"
    otlp_endpoint: (
        Annotated[str, Meta(pattern="^https?://", description="URL of an OpenTelemetry collector; null: no spans.")]
        | None
    ) = None
    kv_events_config: Annotated[KVEventsConfig, Meta(description="Events of the cache's blocks.")] = KVEventsConfig()

    def __post_init__(self) -> None:
        """Checks the rule across fields.

        Raises:
            ConfigError: Only one of `tls_certificate` and `tls_key` is given, or two adapters have one name.
        """
        if len(self.adapter_paths) < len(self.adapters):
            raise ConfigError(f"`adapters` must have names of their own, got {', '.join(self.adapters)}")
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = ("tls_certificate", "tls_key") if self.tls_key is None else ("tls_key", "tls_certificate")
            raise ConfigError(f"`{given}` needs `{missing}`, got none")

    @property
    def adapter_paths(self) -> dict[str, str]:
        """The directories of `adapters` by their names."""
        pairs = (adapter.partition("=") for adapter in self.adapters)
        return {name: path for name, _, path in pairs}

    def __repr__(self) -> str:
        """Leaves the keys out: a config ends up in tracebacks and logs."""
        shown = ((name, getattr(self, name)) for name in self.__struct_fields__ if name != "api_keys")
        fields = ", ".join(f"{name}={value!r}" for name, value in shown)
        return f"ServerConfig({fields}, api_keys=<{len(self.api_keys)} hidden>)"


def server_config(**settings: Any) -> ServerConfig:
    """Builds a `ServerConfig` from its own fields and those of its `engine`, all as keywords.

    Raises:
        ConfigError: An unknown name (the nearest valid one is named), a wrong type or a value out of range.
    """
    limits = {name: settings.pop(name) for name in EngineConfig.__struct_fields__ if name in settings}
    known = {*ServerConfig.__struct_fields__, *EngineConfig.__struct_fields__}
    for name in settings.keys() - known:
        raise ConfigError(f"unknown setting `{name}`; {suggest(name, known)}")
    engine = validated(msgspec.structs.replace(settings.pop("engine", EngineConfig()), **limits))
    return validated(ServerConfig(engine=engine, **settings))


def load_server_config(
    file: str | None, settings: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> ServerConfig:
    """Merges a TOML file, `LLM_SERVER__FIELD` and `LLM_SERVER__ENGINE__FIELD` variables, and settings: the last wins.

    Args:
        file: TOML with the fields of `ServerConfig` and of its `engine`, the latter also in a table; None: no file.
        settings: Fields of `ServerConfig` and of its `engine`, as for `server_config`.
        environ: Variables to look at; the process's own by default.

    Raises:
        ConfigError: The file is missing or not TOML, a key is unknown (the nearest valid one is named), a value is of
            the wrong type or out of range.
    """
    values = read_toml(Path(file)) if file else {}
    _refuse_options(values, str(file), _in_file)
    variables = from_environment(_ENV_PREFIX, os.environ if environ is None else environ)
    _refuse_options(dict(variables), "the environment", _in_environment)
    for dotted, value in variables:
        own = f"engine.{dotted}" if dotted in EngineConfig.__struct_fields__ else dotted
        check_variable(_ENV_PREFIX, own, value, ServerConfig)
        assign(values, dotted, value)
    values |= msgspec.to_builtins(settings)
    for name in EngineConfig.__struct_fields__:
        if name in values:
            assign(values, f"engine.{name}", values.pop(name))
    return from_builtins(values, ServerConfig)


def _refuse_options(names: Iterable[str], place: str, written: Callable[[str, str], str]) -> None:
    """Raises for a name that is an option's and not its setting's, with the setting."""
    for name in sorted(_OPTIONS.keys() & set(names)):
        raise ConfigError(
            f"`{written(name, '…')}` in {place} names no setting\n"
            f"hint: the setting of `--{name.replace('_', '-')}` is written `{written(*_OPTIONS[name])}`"
        )


def _in_file(name: str, value: str) -> str:
    return f"{name} = {value}"


def _in_environment(name: str, value: str) -> str:
    return f"{_ENV_PREFIX}{name.upper()}='{value}'"
