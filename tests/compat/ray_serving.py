"""Three replicas under Ray Serve: equal answers, a replica that is killed, and the first token beside one server's.

Runs in an environment that has Ray: `python -m tests.compat.ray_serving`. Writes `benches/results/ray.json`.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import numpy as np
import ray
from ray import serve

from llm.serving import ServerConfig, ServerHandle
from llm.serving.ray import application, replicas_wanted
from llm.settings.engine import EngineConfig
from tests.fetch_data import CACHE

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benches" / "peers"))

from serving_report import facts, load_average  # noqa: E402 - after the folder is in the path

RESULTS = ROOT / "benches" / "results" / "ray.json"
NUM_CLIENTS, NUM_REPLICAS, NUM_PREFIXES = 32, 3, 12
URL = "http://127.0.0.1:8000"
SENTENCE = "To be, or not to be, that is the question. "
ENGINE = {"max_running_requests": 32}
# Requests a second of all clients together, and how long the load lasts.
RATE, SECONDS = 1.0, 32.0
# The first of the requests that are measured: their beginnings are known from the load before, the rest is new.
MEASURED = 1000 * NUM_PREFIXES
# Many clients stream by then, and others wait.
KILLED_AFTER_S = 12.0


class Outcome(NamedTuple):
    first_token_s: float
    text: str
    error: str | None
    is_whole: bool


def request_of(number: int, max_tokens: int = 16) -> dict[str, Any]:
    """Returns a request with a beginning of 240 tokens that others share, and 280 tokens of its own."""
    prefix = f"{number % NUM_PREFIXES:04d} " + SENTENCE * 20
    return {
        "model": "model",
        "prompt": prefix + f"{number:06d} " * 40,
        "max_tokens": max_tokens,
        "seed": number,
        "stream": True,
        "ignore_eos": True,
    }


def byte_lines(response: httpx.Response) -> Iterator[bytes]:
    """Yields lines as they come; `iter_lines` would also end them at what Unicode calls a line's end."""
    rest = b""
    for chunk in response.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def ask(client: httpx.Client, url: str, request: dict[str, Any]) -> Outcome:
    """Sends a streamed request and reads its events to the end."""
    began, first_s, text, error, is_whole = time.perf_counter(), float("nan"), "", None, False
    with client.stream("POST", f"{url}/v1/completions", json=request) as response:
        if response.status_code != 200:
            return Outcome(first_s, "", response.read().decode(), False)
        for line in byte_lines(response):
            if line == b"data: [DONE]":
                is_whole = True
            elif line.startswith(b"data: "):
                event = json.loads(line.removeprefix(b"data: "))
                if "error" in event:
                    error = event["error"]["message"]
                    continue
                if not text:
                    first_s = time.perf_counter() - began
                text += "".join(choice["text"] for choice in event["choices"])
    return Outcome(first_s, text, error, is_whole)


def with_clients(work: Callable[[httpx.Client, int], list[Outcome]]) -> list[Outcome]:
    """Lets all clients work at the same time; they are made before, for each takes tens of milliseconds."""
    with ExitStack() as stack, ThreadPoolExecutor(NUM_CLIENTS) as pool:
        clients = [stack.enter_context(httpx.Client(timeout=120, trust_env=False)) for _ in range(NUM_CLIENTS)]
        parts = list(pool.map(work, clients, range(NUM_CLIENTS)))
    return [outcome for outcomes in parts for outcome in outcomes]


def steady_load(url: str, first: int = 0) -> list[Outcome]:
    """All clients send at fixed times, whatever the server does; requests are numbered from `first`."""
    start = threading.Barrier(NUM_CLIENTS)

    def work(client: httpx.Client, number: int) -> list[Outcome]:
        start.wait()
        began, outcomes = time.perf_counter(), []
        for turn in range(int(SECONDS * RATE / NUM_CLIENTS)):
            at = began + (turn * NUM_CLIENTS + number) / RATE
            time.sleep(max(at - time.perf_counter(), 0.0))
            outcomes.append(ask(client, url, request_of(first + turn * NUM_CLIENTS + number)))
        return outcomes

    return with_clients(work)


def replica_actors() -> list[Any]:
    names = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if "#replica#" in actor["name"]]
    return [ray.get_actor(actor["name"], namespace=actor["namespace"]) for actor in names]


def check_death() -> dict[str, int]:
    """Kills a replica while all clients stream: each request ends whole, or with an error event; returns the counts."""

    def work(client: httpx.Client, number: int) -> list[Outcome]:
        return [ask(client, URL, request_of(1000 * (turn + 1) + number, max_tokens=120)) for turn in range(2)]

    def kill() -> None:
        time.sleep(KILLED_AFTER_S)
        ray.kill(replica_actors()[0])

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes = with_clients(work)
    killer.join()
    lost = [outcome for outcome in outcomes if not outcome.is_whole and outcome.error is None]
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    print(f"a replica was killed: {len(outcomes)} requests, {len(errors)} error events, {len(lost)} lost")
    assert lost == [], lost
    assert len(errors) <= NUM_CLIENTS
    return {"requests": len(outcomes), "error_events": len(errors), "lost": len(lost)}


def first_tokens(outcomes: list[Outcome]) -> np.ndarray:
    assert all(outcome.is_whole and outcome.error is None for outcome in outcomes), outcomes
    return np.array([outcome.first_token_s for outcome in outcomes])


def report(name: str, seconds: np.ndarray) -> dict[str, float]:
    mean, p99 = float(seconds.mean()), float(np.quantile(seconds, 0.99))
    print(f"{name}: first token of {len(seconds)} requests {mean:.3f} s, p99 {p99:.3f} s")
    return {"requests": len(seconds), "mean_s": round(mean, 4), "p99_s": round(p99, 4)}


def check_departure() -> None:
    """A client that leaves frees its place: soon no replica has a request in progress."""
    with httpx.Client(timeout=60, trust_env=False) as client:
        request = request_of(1, max_tokens=1200)
        with client.stream("POST", f"{URL}/v1/completions", json=request) as response:
            next(byte_lines(response))
    left, began = serve.get_deployment_handle("replica", "default").record_autoscaling_stats, time.perf_counter()
    idle = 0
    while idle < 20:
        assert time.perf_counter() - began < 3.0, "the request goes on without its client"
        idle = 0 if left.remote().result()["in_flight"] else idle + 1


def check_scaling() -> None:
    """The engines' queues ask for replicas, within bounds; before they tell anything, the requests do."""

    def wanted(in_flight: list[float], waiting: list[float], requests: float = 0.0) -> int:
        named = {"in_flight": in_flight, "waiting": waiting}
        metrics = {
            name: {str(idx): value for idx, value in enumerate(values)} for name, values in named.items() if values
        }
        config = SimpleNamespace(get_target_ongoing_requests=lambda: 16.0)
        bounds = {"capacity_adjusted_min_replicas": 1, "capacity_adjusted_max_replicas": 8}
        context = SimpleNamespace(aggregated_metrics=metrics, total_num_requests=requests, config=config, **bounds)
        return replicas_wanted(context)[0]

    assert wanted([0.5, 0.6, 1.3], [0.0, 0.0, 0.0]) == 3
    assert wanted([0.5, 0.6, 1.3], [0.0, 2.0, 3.5]) == 6
    assert wanted([0.0], [0.0]) == 1
    assert wanted([9.0, 9.0], [0.0, 0.0]) == 8
    assert wanted([], [], requests=40.0) == 3


def check(checkpoint: str) -> dict[str, Any]:
    """Compares Ray Serve's replicas with one server of the same checkpoint; returns the figures."""
    config = ServerConfig(port=0, served_model_name=("model",), engine=EngineConfig(**ENGINE))
    with ServerHandle(checkpoint, config) as server:
        steady_load(server.url)
        single = report("one server", first_tokens(steady_load(server.url, MEASURED)))
        with httpx.Client(timeout=60, trust_env=False) as client:
            expected = [ask(client, server.url, request_of(number)).text for number in range(4)]
    # Set for Ray's processes, after this one has read its own: outside an event loop, a handle needs one of its own.
    os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
    ray.init(num_cpus=NUM_REPLICAS + 1, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False)
    try:
        settings = {"model": checkpoint, "name": "model", "min_replicas": NUM_REPLICAS, "max_replicas": NUM_REPLICAS}
        serve.run(application(settings | {f"server.engine.{name}": value for name, value in ENGINE.items()}))
        with httpx.Client(timeout=60, trust_env=False) as client:
            assert [ask(client, URL, request_of(number)).text for number in range(4)] == expected
            refused = client.post(f"{URL}/v1/completions", json={"model": "other", "prompt": "x"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        check_departure()
        steady_load(URL)
        several = report("three replicas", first_tokens(steady_load(URL, MEASURED)))
        ratio = several["mean_s"] / single["mean_s"]
        print(f"ratio {ratio:.2f}")
        killed = check_death()
        assert ratio <= 1.3
    finally:
        serve.shutdown()
        ray.shutdown()
    return {"first_token": {"one server": single, "replicas": several}, "replica_killed": killed}


def main() -> None:
    """Runs everything on SmolLM2, and writes the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=RESULTS)
    output = parser.parse_args().output
    before = load_average()
    os.environ["OMP_NUM_THREADS"] = "1"  # each server has one core, alone and as a replica
    check_scaling()
    figures = check(str(CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"))
    settings = {
        "threads a server": 1,
        "replicas": NUM_REPLICAS,
        "clients": NUM_CLIENTS,
        "requests_per_s": RATE,
        "prefixes": NUM_PREFIXES,
    }
    document = facts("make test-ray", settings, [before]) | {"versions": {"ray": ray.__version__}} | figures
    output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
