"""OpenTelemetry spans: one for each request, in the client's trace if it sent a `traceparent`.

Attributes follow the semantic conventions for HTTP and for generative AI. No span holds a prompt, an answer or a key.
Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llm.errors import ConfigError
from llm.serving.http import CLIENT_CLOSED_REQUEST, Exchange
from llm.settings.server import ServerConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_FLUSH_TIMEOUT_MS = 2000


class Tracing:
    """Makes a span of each request.

    Args:
        provider: Where spans go.
        model_name: The served model, in the attributes.
    """

    def __init__(self, provider: TracerProvider, model_name: str) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("llm.serving")
        self._model_name = model_name
        self._kind, self._fault = SpanKind.SERVER, Status(StatusCode.ERROR)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, exchange: Exchange, route: str | None, status: int) -> None:
        """Makes the span of an exchange that has ended."""
        ended_ns = time.time_ns()
        began_ns = ended_ns - round((time.perf_counter() - exchange.started_at) * 1e9)
        carrier = {name: exchange.headers[name] for name in ("traceparent", "tracestate") if name in exchange.headers}
        span = self._tracer.start_span(
            f"{exchange.method} {route or 'unknown'}",
            context=self._propagator.extract(carrier),
            kind=self._kind,
            start_time=began_ns,
            attributes=self._attributes(exchange, route, status),
        )
        if exchange.first_token_s is not None:
            span.add_event("first token", timestamp=began_ns + round(exchange.first_token_s * 1e9))
        if status >= 500:
            span.set_status(self._fault)
        span.end(ended_ns)

    def shutdown(self) -> None:
        """Sends what is left; waits only shortly for a collector that doesn't answer."""
        self._provider.force_flush(_FLUSH_TIMEOUT_MS)

    def _attributes(self, exchange: Exchange, route: str | None, status: int) -> dict[str, str | int | float]:
        found: dict[str, str | int | float] = {
            "http.request.method": exchange.method,
            "http.response.status_code": status,
            "url.path": exchange.shown_path,
            "llm.request.id": exchange.request_id,
        }
        if route is not None:
            found["http.route"] = route
        if status >= 500 or status == CLIENT_CLOSED_REQUEST:
            found["error.type"] = str(status)
        if exchange.key_name is not None:
            found["llm.key.name"] = exchange.key_name
        if exchange.usage is not None:
            found["gen_ai.operation.name"] = _OPERATIONS.get(route or "", "generate_content")
            found["gen_ai.provider.name"] = "llm-oxide"
            found["gen_ai.request.model"] = found["gen_ai.response.model"] = self._model_name
            found["gen_ai.usage.input_tokens"] = exchange.usage.prompt_tokens
            found["gen_ai.usage.output_tokens"] = exchange.usage.completion_tokens
        return found


def open_tracing(config: ServerConfig, model_name: str, environ: Mapping[str, str] | None = None) -> Tracing | None:
    """Returns the tracing that the settings or OpenTelemetry's own variables ask for; None if nothing does.

    Raises:
        ConfigError: `otlp_endpoint` is set, but OpenTelemetry is not installed.
    """
    environ = os.environ if environ is None else environ
    is_asked_by_variable = any(environ.get(name) for name in _ENDPOINT_VARIABLES)
    if config.otlp_endpoint is None and not is_asked_by_variable:
        return None
    if not _is_installed():
        hint = "hint: pip install 'llm-oxide[otel]'"
        if config.otlp_endpoint is not None:
            raise ConfigError(f"`otlp_endpoint` needs OpenTelemetry, which is not installed\n{hint}")
        logger.warning("%s is set, but OpenTelemetry is not installed: no spans; %s", _ENDPOINT_VARIABLES[0], hint)
        return None
    return Tracing(_provider(config.otlp_endpoint, environ), model_name)


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


def _provider(endpoint: str | None, environ: Mapping[str, str]) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({} if environ.get("OTEL_SERVICE_NAME") else {"service.name": "llm-oxide"})
    provider = TracerProvider(resource=resource)
    # Without an endpoint, the exporter reads OpenTelemetry's variables itself.
    exporter = OTLPSpanExporter() if endpoint is None else OTLPSpanExporter(endpoint=_traces_url(endpoint))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _traces_url(endpoint: str) -> str:
    """The URL for spans at a collector, as `OTEL_EXPORTER_OTLP_ENDPOINT` is read."""
    return endpoint if endpoint.endswith("/v1/traces") else endpoint.rstrip("/") + "/v1/traces"
