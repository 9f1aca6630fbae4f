"""Three replicas under Ray Serve: equal answers, a replica that is killed, and the first token beside one server's.

Runs in an environment that has Ray: `python -m tests.compat.ray_serving`.
"""

import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import numpy as np
import ray
import torch
from ray import serve

from llm.checkpoint import atomic_directory, write_model
from llm.models import DecoderModel
from llm.serving import ServerConfig, ServerHandle
from llm.serving.ray import application, replicas_wanted
from llm.settings.engine import EngineConfig
from llm.settings.model import ModelConfig
from llm.tokenization import BPETokenizer

NUM_CLIENTS, NUM_REPLICAS, NUM_PREFIXES = 32, 3, 12
URL = "http://127.0.0.1:8000"
SENTENCE = "To be, or not to be, that is the question. "
ENGINE = {"max_running_requests": 32}
# Requests a second of all clients together, and how long the load lasts.
RATE, SECONDS = 6.0, 20.0
# All clients stream by then.
KILLED_AFTER_S = 2.0


class Outcome(NamedTuple):
    first_token_s: float
    text: str
    error: str | None
    is_whole: bool


def write_checkpoint(directory: Path) -> Path:
    """Writes a model of 9 million parameters, whose prompts take most of a request's time."""
    torch.manual_seed(0)
    tokenizer = BPETokenizer.train_from_iterator(["To be, or not to be, that is the question. "], vocab_size=270)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    with atomic_directory(directory) as unfinished:
        write_model(unfinished, DecoderModel(config), tokenizer, None)
    return directory


def request_of(number: int, max_tokens: int = 16) -> dict[str, Any]:
    prefix = f"{number % NUM_PREFIXES:04d} " + SENTENCE * 20
    return {
        "model": "tiny",
        "prompt": f"{prefix}{number:06d}",
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
    def client_of(number: int) -> list[Outcome]:
        with httpx.Client(timeout=120, trust_env=False) as client:
            return work(client, number)

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        return [outcome for outcomes in pool.map(client_of, range(NUM_CLIENTS)) for outcome in outcomes]


def steady_load(url: str) -> list[Outcome]:
    """All clients send at fixed times, whatever the server does."""
    began = time.perf_counter()

    def work(client: httpx.Client, number: int) -> list[Outcome]:
        outcomes = []
        for turn in range(int(SECONDS * RATE / NUM_CLIENTS)):
            at = began + (turn * NUM_CLIENTS + number) / RATE
            time.sleep(max(at - time.perf_counter(), 0.0))
            outcomes.append(ask(client, url, request_of(turn * NUM_CLIENTS + number)))
        return outcomes

    return with_clients(work)


def replica_actors() -> list[Any]:
    names = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if "#replica#" in actor["name"]]
    return [ray.get_actor(actor["name"], namespace=actor["namespace"]) for actor in names]


def check_death() -> None:
    """Kills a replica while all clients stream: each request ends whole, or with an error event."""

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


def first_tokens(outcomes: list[Outcome]) -> np.ndarray:
    assert all(outcome.is_whole and outcome.error is None for outcome in outcomes), outcomes
    return np.array([outcome.first_token_s for outcome in outcomes])


def report(name: str, seconds: np.ndarray) -> float:
    print(
        f"{name}: first token of {len(seconds)} requests {seconds.mean():.3f} s, p99 {np.quantile(seconds, 0.99):.3f} s"
    )
    return float(seconds.mean())


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


def check(checkpoint: str) -> None:
    """Compares Ray Serve's replicas with one server of the same checkpoint."""
    config = ServerConfig(port=0, served_model_name=("tiny",), engine=EngineConfig(**ENGINE))
    with ServerHandle(checkpoint, config) as server:
        steady_load(server.url)
        single_s = report("one server", first_tokens(steady_load(server.url)))
        with httpx.Client(timeout=60, trust_env=False) as client:
            expected = [ask(client, server.url, request_of(number)).text for number in range(4)]
    ray.init(num_cpus=NUM_REPLICAS + 1, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False)
    try:
        settings = {"model": checkpoint, "name": "tiny", "min_replicas": NUM_REPLICAS, "max_replicas": NUM_REPLICAS}
        serve.run(application(settings | {f"server.engine.{name}": value for name, value in ENGINE.items()}))
        with httpx.Client(timeout=60, trust_env=False) as client:
            assert [ask(client, URL, request_of(number)).text for number in range(4)] == expected
            refused = client.post(f"{URL}/v1/completions", json={"model": "other", "prompt": "x"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        check_departure()
        steady_load(URL)
        several_s = report("three replicas", first_tokens(steady_load(URL)))
        print(f"ratio {several_s / single_s:.2f}")
        check_death()
        assert several_s <= 1.3 * single_s
    finally:
        serve.shutdown()
        ray.shutdown()


def main() -> None:
    """Runs everything on a checkpoint of its own."""
    check_scaling()
    with tempfile.TemporaryDirectory() as folder:
        check(str(write_checkpoint(Path(folder) / "small")))


if __name__ == "__main__":
    main()
