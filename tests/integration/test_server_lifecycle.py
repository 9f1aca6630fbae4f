"""Limits, keys, start and stop of servers in processes of their own."""

import asyncio
import logging
import shlex
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from llm.errors import ServerError
from llm.inference import EngineConfig, load_async_engine
from llm.serving import ServerConfig, ServerHandle, bind, create_app, run
from llm.settings.run import GenerationConfig
from tests.integration.server_client import (
    DEADLINE_S,
    LONG,
    chat,
    complete,
    metric,
    wait_until,
    write_checkpoint,
)
from tests.unit.inference_samples import FailsOnce

EXAMPLE = Path(__file__).parents[2] / "examples" / "openai_client_demo.py"


def test_full_queue_is_503_and_says_when_to_retry(tmp_path):
    patient = write_checkpoint(tmp_path / "tiny", None, context=1 << 17)
    engine = EngineConfig(max_running_requests=1, max_waiting_requests=1)
    config = ServerConfig(port=0, engine=engine, grace_s=0)
    with ServerHandle(patient, config) as server, ThreadPoolExecutor(1) as pool:
        client = openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0)
        running = complete(client, stream=True, max_tokens=100_000, extra_body={"ignore_eos": True})
        next(iter(running))
        waiting = pool.submit(lambda: complete(client, max_tokens=1))
        wait_until(lambda: metric(server, "llm_requests_waiting") == 1)
        with pytest.raises(openai.InternalServerError) as caught:
            complete(client)
        assert (caught.value.status_code, caught.value.code) == (503, "queue_full")
        assert caught.value.response.headers["retry-after"] == "1"
        running.close()
        assert waiting.result().usage.completion_tokens == 1


def test_keys_and_name_come_from_the_config(checkpoint):
    config = ServerConfig(port=0, api_keys=("first", "second"), served_model_name=("org/name", "second"))
    with ServerHandle(checkpoint, config) as server:
        for key in config.api_keys:
            client = openai.OpenAI(base_url=server.base_url, api_key=key)
            assert complete(client, model="org/name").choices[0].finish_reason == "length"
        with pytest.raises(openai.AuthenticationError) as caught:
            openai.OpenAI(base_url=server.base_url, api_key="third", max_retries=0).models.list()
        assert caught.value.code == "invalid_api_key"
        by_header = httpx.get(f"{server.base_url}/models", headers={"x-api-key": "second"}, trust_env=False)
        assert by_header.json()["data"][0]["id"] == "org/name"
        assert httpx.get(f"{server.url}/health", trust_env=False).json() == {"status": "ok"}
        assert not {"first", "second", "third"} & set(server.log_tail().split())


def test_a_link_to_a_model_names_it(checkpoint, tmp_path):
    # Such as `current -> v3`, or the links of Hugging Face's cache, which lead to files named by their hash.
    (tmp_path / "current").symlink_to(checkpoint, target_is_directory=True)
    with ServerHandle(tmp_path / "current") as server:
        models = httpx.get(f"{server.base_url}/models", trust_env=False).json()["data"]
        assert [model["id"] for model in models] == ["current"]


def test_model_without_chat_template_points_at_completions(tmp_path):
    with ServerHandle(write_checkpoint(tmp_path / "tiny", None)) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="any")
        with pytest.raises(openai.BadRequestError, match="/v1/completions") as caught:
            chat(client)
        assert caught.value.code == "chat_template_missing"
        assert complete(client).choices[0].finish_reason == "length"


def test_checkpoints_own_sampling_values_hold_where_the_request_is_silent(tmp_path):
    greedy = write_checkpoint(tmp_path / "tiny", None, GenerationConfig(temperature=0.0))
    with ServerHandle(greedy) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="any")
        silent = {complete(client, seed=seed).choices[0].text for seed in (1, 2)}
        sampled = {complete(client, seed=seed, temperature=1).choices[0].text for seed in (1, 2)}
    assert (len(silent), len(sampled)) == (1, 2)


def test_taken_port_is_refused_with_a_hint(server, checkpoint):
    port = int(server.url.rsplit(":", 1)[1])
    with pytest.raises(ServerError, match=f"port {port} on 127.0.0.1 is already in use\nhint: "):
        bind("127.0.0.1", port)
    second = subprocess.run(
        [sys.executable, "-m", "llm.serving", checkpoint, "--port", str(port)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 2
    assert f"error: port {port} on 127.0.0.1 is already in use" in second.stderr
    assert "Traceback" not in second.stderr


def test_missing_checkpoint_ends_the_server_with_its_reason(tmp_path):
    with pytest.raises(ServerError, match="exited with code 2") as caught, ServerHandle(tmp_path / "nothing"):
        pass
    assert "no checkpoint at" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_health_is_503_until_the_model_is_loaded(checkpoint):
    gate = threading.Event()

    def load_when_allowed():
        assert gate.wait(DEADLINE_S)
        return load_async_engine(checkpoint, config=EngineConfig())

    async def scenario():
        app = create_app(load_when_allowed, model_name="tiny")
        listener, stop = bind("127.0.0.1", 0), asyncio.Event()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving = asyncio.create_task(run(app, listener, stop=stop))
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            loading = await client.get("/health")
            refused = await client.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
            gate.set()
            await app.services.engine.settled.wait()
            healthy = await client.get("/health")
            answered = await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 1})
        stop.set()
        await serving
        return loading, refused, healthy, answered

    loading, refused, healthy, answered = asyncio.run(scenario())
    assert (loading.status_code, loading.json()) == (503, {"status": "loading"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")
    assert (healthy.status_code, healthy.json()) == (200, {"status": "ok"})
    assert answered.json()["usage"]["completion_tokens"] == 1


def test_fault_of_the_model_is_500_with_the_request_id_and_nothing_inside(checkpoint, caplog):
    def load():
        engine = load_async_engine(checkpoint, config=EngineConfig())
        engine.session.engine.runner = FailsOnce(engine.session.engine.runner)
        return engine

    async def scenario():
        app = create_app(load, model_name="tiny")
        listener, stop = bind("127.0.0.1", 0), asyncio.Event()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving = asyncio.create_task(run(app, listener, stop=stop))
        await app.services.engine.settled.wait()
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            body = {"model": "tiny", "prompt": "x", "max_tokens": 4, "ignore_eos": True}
            failed = await client.post("/v1/completions", json=body, headers={"x-request-id": "req-7"})
            again = await client.post("/v1/completions", json=body)
        stop.set()
        await serving
        return failed, again

    with caplog.at_level(logging.ERROR, logger="llm"):
        failed, again = asyncio.run(scenario())
    message = "The server failed to process the request; its log has the details under the request id req-7"
    error = {"message": message, "type": "server_error", "param": None, "code": "engine_error"}
    assert (failed.status_code, failed.json()) == (500, {"error": error})
    assert again.status_code == 200
    assert "request req-7 failed" in caplog.text
    assert "out of memory" in caplog.text


def test_server_that_is_open_to_the_network_without_keys_warns(checkpoint):
    with ServerHandle(checkpoint, ServerConfig(port=0, host="0.0.0.0")) as server:
        assert "no API key is set: everyone who reaches 0.0.0.0 may use the model" in server.log_tail()
        by_name = httpx.get(f"{server.base_url}/models", headers={"host": "box.lan"}, trust_env=False)
        assert by_name.status_code == 200
    with ServerHandle(checkpoint, ServerConfig(port=0, host="0.0.0.0", api_keys=("key",))) as server:
        assert "no API key" not in server.log_tail()


@pytest.mark.parametrize(("template", "path"), [("play", "chat/completions"), (None, "completions")])
def test_ready_server_prints_its_limits_and_a_command_that_works(tmp_path, template, path):
    engine = EngineConfig(max_model_len=256, max_running_requests=3, max_waiting_requests=7, backend="torch")
    with ServerHandle(write_checkpoint(tmp_path / "tiny", template), ServerConfig(port=0, engine=engine)) as server:
        wait_until(lambda: "  try " in server.log_tail())
        lines = [line.split(maxsplit=1) for line in server.log_tail().splitlines() if line.startswith("  ")]
        facts = {label: fact.strip() for label, fact in lines}
        assert facts["model"].endswith("MiB as float32")
        assert facts["backend"].startswith("PyTorch on cpu, threads: ")
        assert facts["context"] == "256 tokens"
        assert facts["cache"] == "0.188 MiB for 768 tokens, 48 blocks of 16, 256 bytes a token as float32"
        metrics = httpx.get(f"{server.base_url.removesuffix('/v1')}/metrics", trust_env=False).text
        assert 'llm_kv_cache_bytes_per_token{dtype="float32"} 256.0' in metrics
        assert facts["requests"] == "3 at once, 7 waiting"
        _, url, *options = shlex.split(facts["try"])
        assert url == f"{server.base_url}/{path}"
        answer = httpx.post(url, content=options[-1], headers=[options[1].split(": ")], trust_env=False)
        assert answer.json()["usage"]["completion_tokens"] >= 1


def test_sigterm_lets_a_running_stream_finish_and_exits_with_zero(checkpoint):
    with ServerHandle(checkpoint) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0)
        stream = complete(client, max_tokens=300, stream=True)
        chunks = [next(iter(stream))]
        server.process.terminate()
        chunks += list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert server.process.wait(DEADLINE_S) == 0


def test_stopping_server_takes_requests_while_its_health_is_503_and_ends_at_a_second_signal(checkpoint):
    with ServerHandle(checkpoint, ServerConfig(port=0, drain_delay_s=10 * DEADLINE_S)) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0)
        server.process.terminate()
        wait_until(lambda: httpx.get(f"{server.url}/health", trust_env=False).status_code == 503)
        assert httpx.get(f"{server.url}/health", trust_env=False).json() == {"status": "draining"}
        assert complete(client).choices[0].finish_reason == "length"
        server.process.terminate()
        assert server.process.wait(DEADLINE_S) == 0


def test_sigterm_loses_none_of_a_hundred_streams_and_refuses_new_requests(checkpoint):
    engine = EngineConfig(max_running_requests=64)  # the others wait in the queue when the signal arrives
    body = {"model": "tiny", "prompt": "To be", "max_tokens": 800, "stream": True, "ignore_eos": True}

    async def stream(client):
        async with client.stream("POST", "/v1/completions", json=body) as response:
            return response.status_code, [line async for line in response.aiter_lines() if line]

    async def scenario(server):
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=DEADLINE_S, trust_env=False) as client:
            streams = [asyncio.create_task(stream(client)) for _ in range(100)]
            await asyncio.to_thread(wait_until, lambda: metric(server, "llm_requests_in_flight") == 100)
            server.process.terminate()
            while (await client.get("/health")).status_code != 503:
                pass
            refused = await client.post("/v1/completions", json=body)
            return refused, await asyncio.gather(*streams)

    with ServerHandle(checkpoint, ServerConfig(port=0, engine=engine, grace_s=DEADLINE_S)) as server:
        refused, streams = asyncio.run(scenario(server))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
        for status, lines in streams:
            assert status == 200
            assert '"finish_reason":"length"' in lines[-2]
            assert lines[-1] == "data: [DONE]"
        assert server.process.wait(DEADLINE_S) == 0


def test_sigterm_ends_a_stream_that_outlasts_the_grace_period_with_an_error(checkpoint):
    with ServerHandle(checkpoint, ServerConfig(port=0, grace_s=0.2)) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0)
        stream = complete(client, stream=True, **LONG)
        next(iter(stream))
        server.process.terminate()
        with pytest.raises(openai.APIError, match="stopping"):
            list(stream)
        assert server.process.wait(DEADLINE_S) == 0


def test_example_runs(checkpoint):
    shown = subprocess.run([sys.executable, EXAMPLE, checkpoint], capture_output=True, text=True, check=True).stdout
    whole, streamed = shown.split("tokens]")[:2]
    assert whole.split("[")[0].strip() == streamed.split("[")[0].strip()
