"""Keys of a file, their limits and their reload, on a server in a process of its own."""

import signal

import httpx
import openai
import pytest

from llm.serving import ServerConfig, ServerHandle
from tests.integration.server_client import LONG, complete, is_idle, metric, wait_until

KEYS = """
[free]
key = "free-key"

[slow]
key = "slow-key"
requests_per_minute = 2

[thrifty]
key = "thrifty-key"
tokens_per_minute = 30

[single]
key = "single-key"
concurrent_requests = 1
"""


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text(KEYS)
    return file


@pytest.fixture(scope="module")
def server(checkpoint, key_file):
    with ServerHandle(checkpoint, ServerConfig(port=0, api_key_file=str(key_file), grace_s=0)) as handle:
        yield handle


def client_of(server, key):
    return openai.OpenAI(base_url=server.base_url, api_key=key, max_retries=0, timeout=60)


def test_requests_per_minute_end_in_429_with_openais_headers(server):
    client = client_of(server, "slow-key")
    raw = client.completions.with_raw_response.create(model="tiny", prompt="To be", max_tokens=1)
    assert raw.headers["x-ratelimit-limit-requests"] == "2"
    assert raw.headers["x-ratelimit-remaining-requests"] == "1"
    complete(client)
    with pytest.raises(openai.RateLimitError) as caught:
        complete(client)
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
    assert client.models.list().data[0].id == "tiny"  # what doesn't run the model isn't counted
    assert complete(client_of(server, "free-key")).usage.completion_tokens == 24


def test_tokens_of_an_answer_count_against_its_key(server):
    client = client_of(server, "thrifty-key")
    assert complete(client, max_tokens=40).usage.completion_tokens == 40
    with pytest.raises(openai.RateLimitError, match="limit of 30 tokens per minute") as caught:
        complete(client)
    assert caught.value.response.headers["x-ratelimit-remaining-tokens"] == "0"


def test_requests_at_once_are_limited_until_one_ends(server):
    client = client_of(server, "single-key")
    running = complete(client, stream=True, **LONG)
    next(iter(running))
    with pytest.raises(openai.RateLimitError, match="limit of 1 requests at once"):
        complete(client)
    running.close()
    wait_until(lambda: is_idle(server))
    assert complete(client).usage.completion_tokens == 24


def test_log_and_metrics_tell_whose_request_it_was_and_what_it_took(server):
    complete(client_of(server, "free-key"), extra_headers={"x-request-id": "req-of-free"})
    wait_until(lambda: "request_id=req-of-free" in server.log_tail())  # written after the answer
    [line] = [line for line in server.log_tail().splitlines() if "request_id=req-of-free" in line]
    assert "status=200" in line
    assert "key=free model=tiny" in line
    assert "completion_tokens=24" in line
    assert float(line.split("first_token_ms=")[1].split()[0]) < float(line.split(" ms=")[1].split()[0])
    labels = '{engine="0",model_name="tiny"}'
    assert metric(server, f"vllm:time_to_first_token_seconds_count{labels}") >= 1
    assert metric(server, f"vllm:generation_tokens_total{labels}") >= 24
    assert metric(server, f"vllm:kv_cache_usage_perc{labels}") == 0
    assert metric(server, "llm_inter_token_seconds_count") >= 23
    assert metric(server, 'llm_answers_total{finished_reason="length"}') >= 1


def test_sighup_reads_the_keys_again_and_keeps_them_if_the_file_is_invalid(server, key_file):
    def status(key):
        headers = {"authorization": f"Bearer {key}"}
        return httpx.get(f"{server.base_url}/models", headers=headers, trust_env=False).status_code

    running = complete(client_of(server, "free-key"), stream=True, **LONG)
    next(iter(running))
    assert (status("free-key"), status("new-key")) == (200, 401)
    key_file.write_text('[new]\nkey = "new-key"\n')
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: status("new-key") == 200)
    assert status("free-key") == 401
    assert next(iter(running)).choices[0].text  # a revoked key ends no request that runs
    running.close()
    key_file.write_text("[new")
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "api keys not reloaded, the old ones stay" in server.log_tail())
    assert status("new-key") == 200
    assert not {"free-key", "new-key"} & set(server.log_tail().split())
