"""Origins, host names and CORS, for servers with and without keys."""

import asyncio

import httpx
import pytest

from llm.serving import ServerConfig, create_app

PATH = "/v1/models"
EVIL = "http://evil.example"


def never_loaded():
    raise AssertionError("these tests never start the engine")


def send(config, headers, method="GET", path=PATH):
    app = create_app(never_loaded, model_name="tiny", config=ServerConfig(**config))

    async def once():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(once())


@pytest.mark.parametrize(
    ("config", "headers"),
    [
        ({}, {}),
        ({}, {"origin": "http://localhost:8000"}),  # the server's own page
        ({}, {"origin": "HTTP://LocalHost:8000"}),
        ({"allowed_origins": (EVIL,)}, {"origin": EVIL}),
        ({"allowed_origins": ("*",)}, {"origin": EVIL}),
        ({}, {"host": "127.0.0.1:8000"}),
        ({}, {"host": "[::1]:8000"}),
        ({}, {"host": "192.168.1.5"}),
        ({}, {"host": "LOCALHOST."}),
        ({}, {"host": "llm.localhost:9"}),
        ({"allowed_hosts": ("Box.lan",)}, {"host": "box.LAN:8000"}),
        ({"allowed_hosts": ("*",)}, {"host": "evil.example"}),
        ({"host": "0.0.0.0"}, {"host": "box.lan:8000"}),
        ({"host": "::"}, {"host": "box.lan:8000"}),
    ],
)
def test_clients_and_allowed_pages_are_served(config, headers):
    assert send(config, headers).status_code == 200


@pytest.mark.parametrize(
    ("config", "headers", "code", "hint"),
    [
        ({}, {"origin": EVIL}, "origin_not_allowed", f"--allowed-origins {EVIL}"),
        ({}, {"origin": "null"}, "origin_not_allowed", "--allowed-origins null"),
        ({}, {"origin": "http://localhost:8001"}, "origin_not_allowed", "--allowed-origins http://localhost:8001"),
        ({}, {"origin": "http://[evil"}, "origin_not_allowed", "--api-key"),
        ({"allowed_origins": ("http://page",)}, {"origin": EVIL}, "origin_not_allowed", "--allowed-origins"),
        ({"host": "0.0.0.0"}, {"origin": EVIL}, "origin_not_allowed", "--allowed-origins"),
        ({}, {"host": "evil.example:8000"}, "host_not_allowed", "--allowed-hosts evil.example`"),
        ({}, {"host": "evil.example", "origin": EVIL}, "host_not_allowed", "--allowed-hosts evil.example`"),
        ({}, {"host": "notlocalhost"}, "host_not_allowed", "--allowed-hosts"),
        ({}, {"host": "127.0.0.1.evil.example"}, "host_not_allowed", "--allowed-hosts"),
        (
            {"allowed_hosts": ("box.lan",), "host": "0.0.0.0"},
            {"host": "other.lan"},
            "host_not_allowed",
            "--allowed-hosts",
        ),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_other_pages_and_names_are_refused_with_the_way_out(config, headers, code, hint, method):
    path = PATH if method == "GET" else "/v1/completions"
    response = send(config, headers, method, path)
    assert response.status_code == 403
    error = response.json()["error"]
    assert error["code"] == code
    assert hint in error["message"]
    assert "access-control-allow-origin" not in response.headers


def test_probes_are_answered_under_any_name():
    assert send({}, {"host": "pod-7.cluster:8000"}, path="/health").status_code == 503
    assert send({}, {"host": "pod-7.cluster:8000"}, path="/metrics").status_code == 200


def test_server_with_keys_checks_keys_only():
    headers = {"host": "evil.example", "origin": EVIL, "authorization": "Bearer key"}
    assert send({"api_keys": ("key",)}, headers).status_code == 200
    assert send({"api_keys": ("key",)}, {"host": "evil.example", "origin": EVIL}).status_code == 401


def test_preflight_allows_the_headers_that_are_asked_for():
    asked = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"
    headers = {"origin": EVIL, "access-control-request-method": "POST", "access-control-request-headers": asked}
    response = send({"allowed_origins": (EVIL,), "api_keys": ("key",)}, headers, "OPTIONS", "/v1/completions")
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == EVIL
    assert response.headers["access-control-allow-headers"] == asked
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["vary"] == "origin"
    every = send({"allowed_origins": ("*",)}, headers | {"access-control-request-headers": "(x)"}, "OPTIONS")
    assert every.headers["access-control-allow-origin"] == "*"
    assert every.headers["access-control-allow-headers"] == "authorization, content-type, x-api-key"


def test_allowed_page_may_read_the_request_id_and_when_to_retry():
    response = send({"allowed_origins": (EVIL,)}, {"origin": EVIL})
    exposed = response.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens"} <= set(exposed)


@pytest.mark.parametrize("sent", ["abc-123", "req_1:2/3+4=5@6.7", "x" * 128])
def test_request_id_of_the_client_comes_back(sent):
    assert send({}, {"x-request-id": sent}).headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, 'a"b', "ä".encode().decode("latin-1"), "a\tb"])
def test_request_id_that_is_too_long_or_odd_is_replaced(sent):
    answered = send({}, {"x-request-id": sent.encode("latin-1")}).headers["x-request-id"]
    assert answered.startswith("req_")
    assert len(answered) == 36
