"""The app without a model: what it says while loading, after a failed load, and to requests that are wrong."""

import asyncio
import json
import logging
import threading

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llm
from llm.errors import CheckpointError
from llm.serving import ServerConfig, create_app
from llm.serving.logging import configure_logging

CHAT_PATH = "/v1/chat/completions"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


def never_loaded():
    raise AssertionError("these tests never start the engine")


def loading_app(**config):
    return create_app(never_loaded, model_name="tiny", config=ServerConfig(**config))


def send(app, method, path, **options):
    async def once():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(once())


def error_of(response):
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_health_is_503_while_loading():
    response = send(loading_app(), "GET", "/health")
    assert (response.status_code, response.json()) == (503, {"status": "loading"})


def test_requests_are_503_while_loading_but_wrong_ones_400():
    response = send(loading_app(), "POST", CHAT_PATH, json=CHAT)
    assert response.status_code == 503
    assert error_of(response)["code"] == "model_loading"
    assert response.headers["retry-after"] == "1"
    assert send(loading_app(), "POST", CHAT_PATH, json=CHAT | {"n": 0}).status_code == 400


async def run_lifespan_until_settled(app):
    incoming, outgoing = asyncio.Queue(), asyncio.Queue()
    task = asyncio.create_task(app({"type": "lifespan"}, incoming.get, outgoing.put))
    await incoming.put({"type": "lifespan.startup"})
    assert await outgoing.get() == {"type": "lifespan.startup.complete"}
    await app.services.engine.settled.wait()
    await incoming.put({"type": "lifespan.shutdown"})
    assert await outgoing.get() == {"type": "lifespan.shutdown.complete"}
    await task


def test_failed_load_is_told_by_health():
    loaded_in = []

    def fail():
        loaded_in.append(threading.current_thread().name)
        raise CheckpointError("runs/x has no config.json")

    app = create_app(fail, model_name="tiny")
    asyncio.run(run_lifespan_until_settled(app))
    assert loaded_in == ["llm-load"]
    assert isinstance(app.services.engine.error, CheckpointError)
    response = send(app, "GET", "/health")
    assert response.status_code == 503
    assert response.json() == {"status": "failed", "reason": "runs/x has no config.json"}
    assert error_of(send(app, "POST", CHAT_PATH, json=CHAT))["code"] == "engine_failed"


def test_unknown_path_is_404():
    response = send(loading_app(), "POST", "/v1/audio/speech", json={})
    assert response.status_code == 404
    assert error_of(response)["message"] == "Invalid URL (POST /v1/audio/speech)"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/api/v1/completions/", "/v1/completions"),
        ("/openai/deployments/models", "/v1/models"),
        ("/models/tiny", "/v1/models/tiny"),
    ],
)
def test_path_of_a_wrong_base_url_is_404_with_the_right_one(path, meant):
    error = error_of(send(loading_app(), "GET", path))
    assert error["code"] == "unknown_url"
    assert error["message"].endswith(f"hint: the base URL ends in /v1, so that clients call {meant}")


def test_path_of_a_route_outside_v1_is_404_with_the_right_one():
    assert error_of(send(loading_app(), "GET", "/v1/health"))["message"].endswith("hint: the path is /health")


def test_slash_at_the_end_of_a_path_changes_nothing():
    assert send(loading_app(), "POST", CHAT_PATH + "/", json=CHAT).status_code == 503
    app = loading_app()
    assert send(app, "GET", "/v1/models/").json() == send(app, "GET", "/v1/models").json()
    assert send(loading_app(), "GET", "/health//").status_code == 503


def test_ready_and_ping_answer_like_health_and_version_is_the_packages():
    for path in ("/health", "/ready", "/ping"):
        response = send(loading_app(api_keys=("key",)), "GET", path)
        assert (response.status_code, response.json()) == (503, {"status": "loading"})
    assert send(loading_app(), "GET", "/version").json() == {"version": llm.__version__}


def test_model_has_every_name_it_is_served_under():
    app = loading_app(served_model_name=("org/first", "second", "second"))
    listed = send(app, "GET", "/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["org/first", "second"]
    assert send(app, "GET", "/v1/models/second").json() == listed[1]
    for name in ("org/first", "second"):
        assert send(app, "POST", CHAT_PATH, json=CHAT | {"model": name}).status_code == 503
    error = error_of(send(app, "POST", CHAT_PATH, json=CHAT))
    assert error["message"] == "The model `tiny` does not exist; this server serves `org/first`, `second`"


@pytest.mark.parametrize(
    ("request_", "logged"),
    [
        ({"n": 0}, 'refused=n message="`n` is invalid: expected `int` >= 1, got 0"'),
        ({"messages": "my secret"}, 'refused=messages message="`messages` is invalid: expected `array`, got `str`"'),
        ({"messages": [{"role": "my secret", "content": ""}]}, 'refused=messages[0].role message="`messages[0].role` '),
        (
            {"suffix": ["my secret"]},
            'refused=suffix message="`suffix` is not supported with this value: got …\\nhint: send the whole text as '
            '`prompt`"',
        ),
    ],
)
def test_refusal_is_logged_with_its_reason_and_without_texts_of_the_client(request_, logged, caplog):
    with caplog.at_level(logging.INFO, logger="llm.serving.access"):
        response = send(loading_app(), "POST", CHAT_PATH, json=CHAT | request_)
    assert caplog.messages[0].startswith(logged)
    assert caplog.messages[0].endswith(f" request_id={response.headers['x-request-id']}")
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT_PATH, "POST, OPTIONS"),
        ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
        ("DELETE", "/health", "GET, HEAD, OPTIONS"),
    ],
)
def test_wrong_method_is_405_with_allow(method, path, allow):
    response = send(loading_app(), method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allow
    assert error_of(response)["code"] == "method_not_supported"


def test_options_and_head_are_answered():
    options = send(loading_app(api_keys=("key",)), "OPTIONS", CHAT_PATH)
    assert (options.status_code, options.headers["allow"], options.content) == (204, "POST, OPTIONS", b"")
    head, get = (send(loading_app(), method, "/v1/models") for method in ("HEAD", "GET"))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"] == "application/json"


def test_models_are_listed_and_found_by_name():
    app = create_app(never_loaded, model_name="org/tiny")
    listed = send(app, "GET", "/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["org/tiny"]
    assert send(app, "GET", "/v1/models/org/tiny").json() == listed["data"][0]
    response = send(app, "GET", "/v1/models/other")
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["/v1/models/{id:path}", "/v1/responses/{id}"])
def test_path_that_looks_like_a_route_is_one_of_its_ids(path):
    response = send(loading_app(), "GET", path)
    assert response.status_code == 404
    assert path.rpartition("/")[2] in error_of(response)["message"]


def test_unknown_model_is_404():
    response = send(loading_app(), "POST", CHAT_PATH, json=CHAT | {"model": "other"})
    assert response.status_code == 404
    error = error_of(response)
    assert (error["param"], error["code"]) == ("model", "model_not_found")


@pytest.mark.parametrize("declared", [True, False])
def test_body_over_the_limit_is_413(declared):
    async def chunks():
        for _ in range(30):
            yield b"x" * 10

    body = b"x" * 300 if declared else chunks()
    response = send(loading_app(max_body_bytes=100), "POST", CHAT_PATH, content=body)
    assert response.status_code == 413
    assert error_of(response)["message"] == "The request body is larger than this server's limit of 100 bytes"


def test_keys_guard_everything_but_health_and_metrics():
    app = loading_app(api_keys=("right",))
    assert send(app, "GET", "/v1/models").status_code == 401
    assert send(app, "POST", CHAT_PATH, json=CHAT).status_code == 401
    assert send(app, "GET", "/v1/models", headers={"authorization": "Bearer right"}).status_code == 200
    assert send(app, "GET", "/v1/models", headers={"x-api-key": "right"}).status_code == 200
    assert send(app, "GET", "/health").status_code == 503
    assert send(app, "GET", "/metrics").status_code == 200


def test_cors_is_off_unless_an_origin_is_allowed():
    origin = {"origin": "http://page"}
    assert "access-control-allow-origin" not in send(loading_app(), "GET", "/health", headers=origin).headers
    app = loading_app(allowed_origins=("http://page",), api_keys=("key",))
    preflight = send(app, "OPTIONS", CHAT_PATH, headers=origin)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "http://page"
    refused = send(app, "POST", CHAT_PATH, headers=origin)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "http://page")
    assert "access-control-allow-origin" not in send(app, "GET", "/health", headers={"origin": "http://other"}).headers


def test_content_type_does_not_matter():
    body = msgspec.json.encode(CHAT | {"n": 0})
    response = send(loading_app(), "POST", CHAT_PATH, content=body, headers={"content-type": "text/plain"})
    assert error_of(response)["param"] == "n"


def test_metrics_count_requests_by_route_and_status():
    app = loading_app()
    send(app, "GET", "/health")
    send(app, "GET", "/no/such/path")
    page = send(app, "GET", "/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    assert 'llm_requests_total{route="/health",status="503"} 1.0' in page.text
    assert 'llm_requests_total{route="unknown",status="404"} 1.0' in page.text
    assert 'path="/no/such/path"' not in page.text


def test_access_log_has_one_line_a_request_and_no_secret(caplog):
    app = loading_app(api_keys=("secret-key",))
    body = CHAT | {"messages": [{"role": "user", "content": "private words"}]}
    with caplog.at_level(logging.DEBUG, logger="llm"):
        send(app, "POST", CHAT_PATH, json=body, headers={"authorization": "Bearer secret-key"})
        send(app, "GET", "/a%0Aforged=line", headers={"x-api-key": "secret-key"})
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith(f"method=POST path={CHAT_PATH} status=503 ms=")
    assert "path=/a%0Aforged=line status=404" in lines[1]
    assert not any("secret-key" in line or "private" in line for line in lines)


def test_access_log_in_json_has_ids_and_times_of_its_own(capsys):
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    headers = {"x-request-id": "mine", "traceparent": traceparent, "authorization": "Bearer secret-key"}
    configure_logging("info", "json")
    try:
        send(loading_app(api_keys=("secret-key",)), "GET", "/v1/models", headers=headers)
        logging.getLogger("llm.serving").warning("two\nlines %d", 7)
    finally:
        logging.getLogger("llm").handlers.clear()
        logging.getLogger("llm").propagate = True
    access, warning = map(json.loads, capsys.readouterr().err.splitlines())
    assert access["ms"] > 0
    assert {name: access[name] for name in ("level", "logger", "method", "path", "status")} == {
        "level": "info",
        "logger": "llm.serving.access",
        "method": "GET",
        "path": "/v1/models",
        "status": 200,
    }
    assert (access["key"], access["request_id"]) == ("api-key-1", "mine")
    assert access["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert (warning["level"], warning["message"]) == ("warning", "two\nlines 7")


def test_config_never_shows_its_keys():
    assert "secret-key" not in repr(ServerConfig(api_keys=("secret-key",)))


FUZZED_APP = loading_app(max_body_bytes=2000)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([CHAT_PATH, "/v1/completions"]), st.binary(max_size=3000))
def test_no_body_is_answered_with_500(path, body):
    response = send(FUZZED_APP, "POST", path, content=body)
    assert response.status_code in {400, 413}
    assert error_of(response)["message"]
