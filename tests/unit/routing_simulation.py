"""Engines without their model behind a router, in simulated time; schedulers and prefix caches are the real ones."""

import heapq
import itertools
import json
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from llm import _rust
from llm.serving.routing import BLOCK_CHARS, PrefixTable, block_keys
from llm.settings.engine import EngineConfig
from llm.settings.sampling import SamplingParams

VOCAB = 256
BLOCK_TOKENS = 16
OUTPUT_TOKENS = 16
# A small model on a few cores: a step of at least 20 ms, and 1 ms for each token of a prompt.
STEP_S, TOKEN_S = 0.02, 0.001


class Arrival(NamedTuple):
    at_s: float
    token_ids: np.ndarray
    body: bytes


class Load(NamedTuple):
    num_prefixes: int = 64
    prefix_tokens: int = 2048
    suffix_tokens: int = 64
    num_requests: int = 1280
    rate_per_s: float = 2.0
    skew: float = 0.0  # exponent of Zipf's law over the prefixes; 0: all are as likely


def arrivals(load: Load, seed: int = 0) -> list[Arrival]:
    """Requests whose text has a block of characters for each block of tokens."""
    random = np.random.default_rng(seed)
    prefixes = random.integers(0, VOCAB, (load.num_prefixes, load.prefix_tokens), np.uint32)
    weights = np.arange(1, load.num_prefixes + 1) ** -load.skew
    chosen = random.choice(load.num_prefixes, load.num_requests, p=weights / weights.sum())
    times = np.cumsum(random.exponential(1 / load.rate_per_s, load.num_requests))
    found = []
    for at_s, prefix in zip(times, chosen, strict=True):
        token_ids = np.concatenate([prefixes[prefix], random.integers(0, VOCAB, load.suffix_tokens, np.uint32)])
        text = "".join(f"{token:0{BLOCK_CHARS // BLOCK_TOKENS}d}" for token in token_ids)
        found.append(Arrival(float(at_s), token_ids, json.dumps({"model": "m", "prompt": text}).encode()))
    return found


class Replica:
    """An engine whose steps take simulated time."""

    def __init__(self, num_blocks: int) -> None:
        limits = EngineConfig(
            block_size=BLOCK_TOKENS, max_batch_tokens=2048, max_running_requests=64, max_model_len=8192
        )
        self.core = _rust.EngineCore(
            limits,
            num_blocks=num_blocks,
            token_bytes=[b"%d " % idx for idx in range(VOCAB)],
            special_ids=[],
            eos_ids=[],
            pad_id=None,
        )
        self.params = _rust.RequestParams(SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0.0, seed=0))
        self.logits = np.random.default_rng(0).normal(size=(64, VOCAB)).astype(np.float32)
        self.in_progress = 0
        self.plan: _rust.StepPlan | None = None

    def add(self, request_id: int, token_ids: np.ndarray) -> None:
        self.core.add_choices(request_id, token_ids, self.params)
        self.in_progress += 1

    def begin(self) -> float | None:
        """Plans a step and returns the seconds that it takes."""
        self.plan = self.core.schedule()
        return None if self.plan is None else STEP_S + TOKEN_S * len(self.plan.token_ids)

    def end(self) -> list[int]:
        """Ends the step and returns the requests that got a token."""
        assert self.plan is not None
        outputs = self.core.update(self.logits[: len(self.plan.logits_indices)].copy())
        self.in_progress -= int((outputs.finish_reasons != 0).sum())
        self.plan = None
        return outputs.request_ids.tolist()


Router = Callable[[Arrival, Mapping[str, int]], str]


def round_robin() -> Router:
    turns = itertools.count()
    return lambda _, loads: list(loads)[next(turns) % len(loads)]


def least_busy() -> Router:
    turns = itertools.count()

    def choose(_: Arrival, loads: Mapping[str, int]) -> str:
        turn = next(turns)
        names = list(loads)
        return min(names[turn % len(names) :] + names[: turn % len(names)], key=loads.__getitem__)

    return choose


def by_prefix(capacity_blocks: int) -> Router:
    table = PrefixTable(capacity_blocks)

    def choose(arrival: Arrival, loads: Mapping[str, int]) -> str:
        keys = block_keys(arrival.body)
        server = table.ranked(keys, loads)[0]
        table.add(server, keys)
        return server

    return choose


class Measured(NamedTuple):
    first_token_s: np.ndarray  # (N,), by request
    hit_share: float
    by_replica: dict[str, int]


def simulate(requests: list[Arrival], router: Router, *, num_replicas: int = 8, num_blocks: int) -> Measured:
    """Runs all requests to their end."""
    replicas = {f"replica-{idx}": Replica(num_blocks) for idx in range(num_replicas)}
    waiting_since = {idx: arrival.at_s for idx, arrival in enumerate(requests)}
    first_s = np.full(len(requests), np.nan)
    sent = dict.fromkeys(replicas, 0)
    order = itertools.count()
    # What happens next: a request arrives (its number and no replica), or a replica ends its step.
    events = [(arrival.at_s, next(order), idx, "") for idx, arrival in enumerate(requests)]

    def begin(name: str, now: float) -> None:
        if replicas[name].plan is None and (took_s := replicas[name].begin()) is not None:
            heapq.heappush(events, (now + took_s, next(order), -1, name))

    while events:
        now, _, idx, name = heapq.heappop(events)
        if name:
            for request_id in replicas[name].end():
                if (began := waiting_since.pop(request_id, None)) is not None:
                    first_s[request_id] = now - began
        else:
            name = router(requests[idx], {key: replica.in_progress for key, replica in replicas.items()})
            replicas[name].add(idx, requests[idx].token_ids)
            sent[name] += 1
        begin(name, now)
    stats = [replica.core.stats() for replica in replicas.values()]
    for replica in replicas.values():
        replica.core.check_integrity()
    hits = sum(stat["prefix_hit_tokens"] for stat in stats) / sum(stat["prefix_query_tokens"] for stat in stats)
    return Measured(first_s, hits, sent)
