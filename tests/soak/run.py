"""Runs the server under a mixed load for minutes, and shows that nothing grows, leaks or changes: `make test-soak`.

Usage: python -m tests.soak.run [--minutes MINUTES] [--out FILE]
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import msgspec
import numpy as np

from llm.inference import EngineConfig
from llm.serving import ServerConfig
from llm.serving.handle import CONFIG_VARIABLE
from llm.serving.server import bind
from llm.settings.engine import NgramSpeculation
from tests.integration.server_client import write_checkpoint
from tests.soak.load import MODEL, Clients, client
from tests.soak.served import CLEAN

SAMPLE_S = 5.0
WARM_UP_S = 300.0
NUM_CLIENTS = 12
PAUSE_S = 0.5
MOST_GROWTH = 0.01
MAX_STORED = 50
BLOCK_BYTES = 4096  # of the tiny model: 16 tokens, 2 layers, one head of 16 numbers
PROBE = {"model": MODEL, "prompt": "To be, or", "max_tokens": 64, "seed": 1, "temperature": 0.9, "logprobs": 2}
COUNTERS = ("llm_preemptions_total", "llm_accepted_draft_tokens_total", "llm_prefix_cache_hit_tokens_total")
CONFIG = ServerConfig(
    port=0,
    max_body_bytes=2**18,
    response_store_max_count=MAX_STORED,
    response_store_max_bytes=2**18,
    tool_parser="hermes",
    log_level="error",
    engine=EngineConfig(
        max_model_len=1024,
        max_running_requests=16,
        max_waiting_requests=64,
        kv_cache_memory_bytes=72 * BLOCK_BYTES,
        enable_prefix_caching=True,
        speculative=NgramSpeculation(),
    ),
)


def start(checkpoint, log):
    """Starts the server and returns its process and URL."""
    with bind("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", "tests.soak.served", str(checkpoint), "--fd", str(listener.fileno())]
        variables = os.environ | {CONFIG_VARIABLE: msgspec.json.encode(CONFIG).decode()}
        process = subprocess.Popen(command, env=variables, pass_fds=(listener.fileno(),), stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                return process, url
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server didn't start")


def measure(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    field = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if len(line.split()) > 1}
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return {"rss_mib": int(field["VmRSS"]) / 1024, "fds": descriptors, "threads": int(field["Threads"])}


async def metrics(clients):
    page = (await clients.http.get("/metrics")).text
    return {key: float(value) for key, value in (x.rsplit(" ", 1) for x in page.splitlines() if x[:1] != "#")}


def held(page):
    """What is zero when nothing runs."""
    running = sum(page[f"llm_requests_{name}"] for name in ("in_flight", "running", "waiting"))
    return running + page["llm_blocks_total"] - page["llm_blocks_free"]


async def sample(clients, pid, until, began):
    """Samples the process until the end, and prints a line a minute."""
    loop, samples = asyncio.get_running_loop(), []
    while loop.time() < until:
        await asyncio.sleep(SAMPLE_S)
        samples.append(measure(pid) | {"s": loop.time() - began})
        if len(samples) % round(60 / SAMPLE_S) == 0:
            now = samples[-1]
            print(
                f"{now['s'] / 60:5.1f} min  {now['rss_mib']:.1f} MiB  {now['fds']} descriptors  {now['threads']} "
                f"threads  {sum(clients.counts.values()):,} answers  {len(clients.faults)} faults {clients.faults[:1]}",
                flush=True,
            )
    return samples


async def idle(clients):
    """Waits until nothing runs, for half a minute at most, and returns the metrics."""
    for _ in range(300):
        page = await metrics(clients)
        if held(page) == 0:
            break
        await asyncio.sleep(0.1)
    return page


async def probe(clients):
    return (await clients.http.post("/v1/completions", json=PROBE)).json()["choices"]


async def stored(clients):
    answers = [await clients.http.get(f"/v1/responses/{name}") for name in clients.ids]
    return sum(answer.status_code == 200 for answer in answers)


async def soak(url, pid, minutes):
    clients, loop = Clients(url, seed=1), asyncio.get_running_loop()
    first = await probe(clients)
    resting = measure(pid)
    began = loop.time()
    until = began + minutes * 60
    working = [client(clients, until, PAUSE_S) for _ in range(NUM_CLIENTS)]
    samples, *_ = await asyncio.gather(sample(clients, pid, until, began), *working)
    page = await idle(clients)
    found = {
        "held_at_the_end": held(page),
        "same_answer": await probe(clients) == first,
        "stored": await stored(clients),
        "counters": {name: page[name] for name in COUNTERS},
    }
    await clients.http.aclose()
    await asyncio.sleep(1)
    found |= {"before": resting, "after": measure(pid)}
    rows = {f"{kind} {status or ''}".strip(): count for (kind, status), count in sorted(clients.counts.items())}
    return samples, found | {"answers": rows, "faults": clients.faults}


def trend(samples, minutes):
    """Growth of the memory after the warm-up: of means over a fifth of the samples each, and of a fitted line."""
    warm_s = min(WARM_UP_S, minutes * 60 / 2)
    rest = [sample for sample in samples if sample["s"] >= warm_s]
    rss, seconds = (np.array([sample[name] for sample in rest]) for name in ("rss_mib", "s"))
    part = max(1, len(rest) // 5)
    slope = float(np.polyfit(seconds, rss, 1)[0]) * 3600
    growth = float(rss[-part:].mean() / rss[:part].mean() - 1)
    return {"warm_up_s": warm_s, "growth": growth, "slope_mib_an_hour": slope}


def complaints(found):
    """Everything that is not as it should be."""
    before, after = found["before"], found["after"]
    checks = {
        f"memory grew by {found['growth']:.2%}": found["growth"] > MOST_GROWTH,
        f"{after['fds']} descriptors, {before['fds']} before": after["fds"] > before["fds"] + 2,
        f"{after['threads']} threads at the end": after["threads"] > found["most_threads_warm"],
        f"{found['held_at_the_end']:g} blocks and requests held at the end": found["held_at_the_end"] != 0,
        "a seeded answer changed": not found["same_answer"],
        f"{found['stored']} responses stored": found["stored"] > MAX_STORED,
        "no request was preempted": found["counters"]["llm_preemptions_total"] == 0,
        "the engine's integrity check failed": not found["integrity"],
    }
    return [text for text, is_wrong in checks.items() if is_wrong] + found["faults"][:20]


def report(found):
    for name, count in found["answers"].items():
        print(f"  {name:<32}{count:>9,}")
    for name in ("before", "after", "counters", "growth", "slope_mib_an_hour", "stored", "same_answer", "integrity"):
        print(f"  {name:<20} {found[name]}")


def run(minutes, log):
    with tempfile.TemporaryDirectory() as directory:
        process, url = start(write_checkpoint(Path(directory) / MODEL, "play"), log)
        try:
            samples, found = asyncio.run(soak(url, process.pid, minutes))
        finally:
            process.terminate()
            code = process.wait(60)
    log.seek(0)
    warm = [sample["threads"] for sample in samples[: len(samples) // 4 + 1]]
    found |= trend(samples, minutes) | {"most_threads_warm": max(warm), "integrity": code == 0 and CLEAN in log.read()}
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()}
    load = {"minutes": minutes, "clients": NUM_CLIENTS, "pause_s": PAUSE_S}
    return {"machine": machine, "python": platform.python_version()} | load | found | {"samples": samples}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--out", type=Path, default=Path("benches/results/soak.json"))
    options = parser.parse_args()
    with tempfile.TemporaryFile("w+") as log:
        found = run(options.minutes, log)
        log.seek(0)
        print(log.read()[-2000:])
    report(found)
    wrong = found["complaints"] = complaints(found)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(["FAILED:", *wrong]) if wrong else "nothing grew, leaked or changed")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
