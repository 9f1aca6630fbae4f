"""`llm bench serve` against a real server."""

import json

import httpx
import msgspec
import pytest
from typer.testing import CliRunner

from llm.benchmark import read_report, run_benchmark
from llm.cli.main import app
from llm.errors import ServerError
from llm.serving import ServerConfig, ServerHandle
from llm.settings.benchmark import ServingBenchmark
from tests.integration.server_client import is_idle, metric, wait_until


def settings(server, **values):
    small = {"requests": 12, "warmup": 2, "prompt_words": 10, "output_tokens": 8, "endpoint": "completions"}
    return ServingBenchmark(url=server.url, **small | values)


def test_closed_loop_counts_the_servers_tokens(server):
    before = metric(server, "llm_generation_tokens_total")
    report = run_benchmark(settings(server, repeats=2, clients=3), progress=False)
    assert report.model == "tiny"
    assert [len(repeat.requests) for repeat in report.repeats] == [12, 12]
    assert [repeat.errors for repeat in report.repeats] == [{}, {}]
    assert report.values("output_tokens") == [12 * 8, 12 * 8]
    assert metric(server, "llm_generation_tokens_total") - before == 8 * (2 * 12 + 2)
    for request in report.repeats[0].requests:
        assert 0 < request.ttft_s <= request.e2e_s
        assert sum(request.gaps_s) == pytest.approx(request.e2e_s - request.ttft_s)
    wait_until(lambda: is_idle(server))


def test_open_loop_starts_requests_at_their_arrival(server):
    report = run_benchmark(settings(server, rate=40.0, max_e2e_s=60.0), progress=False)
    [repeat] = report.repeats
    assert repeat.errors == {}
    assert repeat.metrics["goodput_per_s"] == repeat.metrics["requests_per_s"]
    assert all(request.lag_s >= 0 for request in repeat.requests)


def test_trace_is_replayed_in_chats(server, tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(f'{{"arrival_s": {at / 100}, "output_tokens": {at + 1}}}\n' for at in range(4)))
    [repeat] = run_benchmark(settings(server, trace=str(trace), endpoint="chat"), progress=False).repeats
    assert repeat.errors == {}
    assert len(repeat.requests) == 4
    assert all(request.output_tokens <= 4 for request in repeat.requests)


def test_failures_are_counted_by_their_message(server, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"prompt": "b", "output_tokens": 1000000}\n')
    [repeat] = run_benchmark(settings(server, prompts=str(prompts)), progress=False).repeats
    [(message, count)] = repeat.errors.items()
    assert message.startswith("status 400")
    assert count == 6
    with pytest.raises(ServerError, match="all 12 requests failed, the first with: status 404"):
        run_benchmark(settings(server, model="other", warmup=0), progress=False)
    with pytest.raises(ServerError, match=r"no whole answer after 0\.001 s"):
        run_benchmark(settings(server, timeout_s=0.001, output_tokens=4000), progress=False)
    wait_until(lambda: is_idle(server))


def test_server_that_is_away_or_wants_a_key_is_named(checkpoint):
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9 can't be reached"):
        run_benchmark(ServingBenchmark(url="http://127.0.0.1:9"), progress=False)
    with ServerHandle(checkpoint, ServerConfig(port=0, api_keys=("secret",))) as guarded:
        with pytest.raises(ServerError, match="status 401"):
            run_benchmark(settings(guarded), progress=False)
        report = run_benchmark(settings(guarded, api_key="secret", requests=1), progress=False)
        assert "secret" not in msgspec.json.encode(report).decode()


def test_command_writes_a_report_and_compares_two(server, tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    options = ["--requests", "4", "--output-tokens", "4", "--prompt-words", "5", "--endpoint", "completions"]
    for file in (first, second):
        run = CliRunner().invoke(app, ["bench", "serve", "--url", server.url, *options, "--output", str(file)])
        assert run.exit_code == 0, run.output
        assert "Time to the first token" in run.output
    assert read_report(first).values("output_tokens") == [16]
    found = CliRunner().invoke(app, ["bench", "serve", "--compare", str(first), str(second), "--json"])
    assert {"metric", "before", "after", "p_value"} <= set(json.loads(found.output)[0])
    table = CliRunner().invoke(app, ["bench", "serve", "--compare", str(first), str(second)])
    assert "no difference shown" in table.output
    assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
