"""Spans of requests: in memory, and as a collector receives them from a real server."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from llm.errors import ConfigError
from llm.serving import ServerConfig, ServerHandle, create_app
from llm.serving.tracing import Tracing, open_tracing
from llm.settings.merge import validated
from tests.integration.server_client import wait_until

pytest.importorskip("opentelemetry.sdk.trace")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


def spans_of(requests):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(lambda: None, model_name="tiny")
    app.tracing = Tracing(provider, "tiny")

    async def send():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for method, path, headers in requests:
                await client.request(method, path, headers=headers)

    asyncio.run(send())
    return exporter.get_finished_spans()


def test_span_continues_the_clients_trace_and_names_route_and_status():
    [listed, unknown, alone] = spans_of(
        [
            ("GET", "/v1/models", {"traceparent": TRACEPARENT, "x-request-id": "mine"}),
            ("GET", "/health", {}),
            ("GET", "/no/such/path", {"traceparent": "00-broken"}),
            ("GET", "/v1/models/tiny", {}),
        ]
    )
    assert listed.name == "GET /v1/models"
    assert format(listed.context.trace_id, "032x") == TRACE
    assert format(listed.parent.span_id, "016x") == PARENT
    assert dict(listed.attributes) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/v1/models",
        "url.path": "/v1/models",
        "llm.request.id": "mine",
    }
    assert listed.start_time < listed.end_time
    assert (unknown.name, unknown.parent) == ("GET unknown", None)
    assert alone.name == "GET /v1/models/{id:path}"


def test_nothing_is_traced_unless_asked_for():
    assert open_tracing(ServerConfig(), "tiny", {}) is None
    assert open_tracing(ServerConfig(), "tiny", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}) is not None


class Collector(HTTPServer):
    """Keeps the spans that it receives."""

    def __init__(self):
        self.spans = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        assert self.path == "/v1/traces"
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_collector_receives_the_tokens_and_times_of_a_stream_when_the_server_stops(checkpoint):
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        with ServerHandle(checkpoint, ServerConfig(port=0, otlp_endpoint=endpoint)) as server:
            body = {"model": "tiny", "prompt": "private words", "max_tokens": 5, "stream": True, "ignore_eos": True}
            headers = {"traceparent": TRACEPARENT}
            response = httpx.post(f"{server.base_url}/completions", json=body, headers=headers, trust_env=False)
            assert response.status_code == 200
        wait_until(lambda: collector.spans)
        collector.shutdown()
    [span] = collector.spans
    found = {pair.key: pair.value.int_value or pair.value.string_value for pair in span.attributes}
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("POST /v1/completions", TRACE, PARENT)
    assert found["gen_ai.operation.name"] == "text_completion"
    assert found["gen_ai.request.model"] == "tiny"
    assert found["gen_ai.usage.output_tokens"] == 5
    assert found["http.response.status_code"] == 200
    assert [event.name for event in span.events] == ["first token"]
    assert span.start_time_unix_nano < span.events[0].time_unix_nano <= span.end_time_unix_nano
    assert b"private" not in span.SerializeToString()


def test_endpoint_must_be_a_url():
    with pytest.raises(ConfigError, match="otlp_endpoint"):
        validated(ServerConfig(otlp_endpoint="localhost:4318"))
