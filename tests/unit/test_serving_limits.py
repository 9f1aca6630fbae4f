"""Limits of a key, on a clock that the tests set."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest

from llm.inference import Usage
from llm.serving import ServerConfig, create_app
from llm.serving.errors import APIError
from llm.serving.limits import KeyUsage
from llm.settings.keys import ApiKey


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


def limited(**limits):
    clock = Clock()
    return KeyUsage("alice", ApiKey(key="secret", **limits), clock), clock


def request(tokens=0):
    usage = Usage(prompt_tokens=tokens, completion_tokens=0, total_tokens=tokens)
    return SimpleNamespace(usage=usage if tokens else None, response_headers=[], background=None)


def run(key, tokens=0):
    exchange = request(tokens)
    with key.counted(exchange):
        pass
    return dict(exchange.response_headers)


def refused(key):
    exchange = request()
    with pytest.raises(APIError) as caught, key.counted(exchange):
        raise AssertionError("a refused request ran")
    assert caught.value.status == 429
    assert caught.value.body.code == "rate_limit_exceeded"
    return caught.value, dict(exchange.response_headers)


def test_requests_per_minute_are_refused_past_the_limit_and_come_back():
    key, clock = limited(requests_per_minute=2)
    assert run(key)[b"x-ratelimit-remaining-requests"] == b"1"
    assert run(key)[b"x-ratelimit-remaining-requests"] == b"0"
    error, headers = refused(key)
    assert error.body.type == "requests"
    assert error.body.message == "The API key has reached its limit of 2 requests per minute\nhint: try again in 30 s"
    assert dict(error.headers) == {b"retry-after": b"30"}
    assert headers == {
        b"x-ratelimit-limit-requests": b"2",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"60.000s",
    }
    clock.now_s += 29
    refused(key)
    clock.now_s += 1
    run(key)
    clock.now_s += 3600
    assert run(key)[b"x-ratelimit-remaining-requests"] == b"1"  # a rest of an hour saves up one minute's worth


def test_tokens_are_taken_when_the_answer_ends_and_debt_is_waited_for():
    key, clock = limited(tokens_per_minute=60)
    run(key, tokens=59)
    assert run(key, tokens=100)[b"x-ratelimit-remaining-tokens"] == b"1"
    error, headers = refused(key)
    assert (error.body.type, dict(error.headers)) == ("tokens", {b"retry-after": b"100"})
    assert headers[b"x-ratelimit-remaining-tokens"] == b"0"
    assert headers[b"x-ratelimit-reset-tokens"] == b"159.000s"
    clock.now_s += 100
    run(key)


def test_requests_at_once_are_counted_down_also_after_a_failure():
    key, _ = limited(concurrent_requests=1)
    with key.counted(request()):
        error, headers = refused(key)
        assert (error.body.type, dict(error.headers)) == ("requests", {b"retry-after": b"1"})
        assert headers == {}
    with pytest.raises(KeyError), key.counted(request()):
        raise KeyError
    run(key)


def test_refused_request_takes_nothing():
    key, _ = limited(requests_per_minute=5, concurrent_requests=1)
    with key.counted(request()):
        for _ in range(10):
            refused(key)
    assert run(key)[b"x-ratelimit-remaining-requests"] == b"3"


def test_work_in_the_background_counts_until_it_ends():
    async def both():
        key, _ = limited(concurrent_requests=1, tokens_per_minute=60)
        exchange = request(100)
        with key.counted(exchange):
            exchange.background = asyncio.create_task(asyncio.sleep(0))
        assert refused(key)[0].body.type == "requests"
        await exchange.background
        await asyncio.sleep(0)
        assert refused(key)[0].body.type == "tokens"

    asyncio.run(both())


@pytest.mark.parametrize(
    ("path", "kind"), [("/v1/messages", "rate_limit_error"), ("/v1/completions", "requests"), ("/tokenize", "requests")]
)
def test_every_api_tells_a_limit_in_its_own_form(tmp_path, path, kind):
    file = tmp_path / "keys.toml"
    file.write_text("[alice]\nkey = 'secret'\nrequests_per_minute = 1")
    app = create_app(lambda: None, model_name="tiny", config=ServerConfig(api_key_file=str(file)))

    async def twice():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.post(path, json={}, headers={"x-api-key": "secret"}) for _ in range(2)]

    first, second = asyncio.run(twice())
    assert first.status_code == 400  # a wrong request counts too
    assert (second.status_code, second.json()["error"]["type"]) == (429, kind)
    assert 1 <= int(second.headers["retry-after"]) <= 60
    assert second.headers["x-ratelimit-remaining-requests"] == "0"
