"""Compares speeds beside PyTorch and tiktoken with stored ratios: `make bench-ratios`.

    python -m tools.bench_ratios [--rounds 21] [--update]

Ours and the other's work take turns on one thread, so that a busy machine slows both; a ratio is the median over all
rounds of the other's time over ours. A workload is measured up to three times, and is a failure if its ratio is more
than 15 % below the one stored for this processor each time. Ratios differ between processors, so one that has none in
the baseline must reach half of the lowest ratio of the others.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tiktoken
import torch
from tests.reference.bpe import PATTERNS

from llm import SamplingParams, _rust
from llm.demo import demo_corpus
from llm.inference.kv_cache import KVCache
from llm.inference.runners.base import Step
from llm.inference.runners.cpu import KernelModelRunner
from llm.inference.runners.torch import TorchModelRunner
from llm.models import DecoderModel
from llm.settings.model import ModelConfig
from llm.tokenization import BPETokenizer
from tools.bench_check import BASELINE, processor

ATTEMPTS, BLOCK_SIZE, LEAST_OF_OWN = 3, 16, 0.85
Work = Callable[[], object]


class Workload(NamedTuple):
    """Two ways to do one thing.

    Attributes:
        name: What is done, and beside what.
        ours: Our way.
        theirs: The other way.
    """

    name: str
    ours: Work
    theirs: Work


def workloads() -> Iterator[Workload]:
    """Yields all workloads. Results of encoding and decoding agree; draws of sampling are random."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield _encoding()
    yield _sampling()
    yield from _decoding()


def _encoding() -> Workload:
    text = demo_corpus()[:200_000]
    tokenizer = BPETokenizer.train_from_iterator([text], vocab_size=2_000, progress=False)
    table = {token: rank for rank, token in enumerate(tokenizer.token_bytes()[:-1]) if token is not None}
    twin = tiktoken.Encoding(
        "twin", pat_str=PATTERNS["gpt4"], mergeable_ranks=table, special_tokens=tokenizer.special_tokens
    )
    assert tokenizer.encode(text) == twin.encode_ordinary(text)
    return Workload("encode / tiktoken", partial(tokenizer.encode, text), partial(twin.encode_ordinary, text))


def _sampling() -> Workload:
    logits = torch.empty(8, 50_000).exponential_(0.5)
    params = [_rust.RequestParams(SamplingParams(max_tokens=1, top_k=50, top_p=0.9, seed=row)) for row in range(8)]
    none = [np.array([], np.uint32)] * 8
    fresh = logits.clone()

    def ours() -> object:
        fresh.copy_(logits)
        return _rust.sample(fresh.numpy(), params, none, none)

    def theirs() -> object:
        fresh.copy_(logits)
        values, ids = fresh.topk(50)
        probabilities = values.softmax(-1)
        left = probabilities.masked_fill(probabilities.cumsum(-1) - probabilities >= 0.9, 0.0)
        return ids.gather(1, torch.multinomial(left, 1))

    return Workload("sample / PyTorch", ours, theirs)


def _decoding() -> Iterator[Workload]:
    config = ModelConfig(vocab_size=4_096, hidden_size=512, intermediate_size=1_408, num_hidden_layers=6)
    model = DecoderModel(config).eval()
    for rows in (1, 8):
        place = 128
        each = place // BLOCK_SIZE + 1
        tables = np.arange(rows * each, dtype=np.int32).reshape(rows, each)
        step = Step.of([(place, place + 1)] * rows, tables, np.full(rows, 7), BLOCK_SIZE)
        caches = [KVCache.allocate(config, rows * each, BLOCK_SIZE, torch.float32, model.device) for _ in range(2)]
        for part in zip(*((*cache.keys, *cache.values) for cache in caches), strict=True):
            part[1].copy_(part[0].normal_())
        kernels, plain = KernelModelRunner(model, caches[0], 1), TorchModelRunner(model, caches[1])
        torch.testing.assert_close(kernels.run(step), plain.run(step), rtol=1e-3, atol=1e-3)
        yield Workload(f"decode, rows: {rows} / PyTorch", partial(kernels.run, step), partial(plain.run, step))


def ratio(workload: Workload, rounds: int) -> float:
    """Returns how many times as fast ours is: the median over rounds in turn."""
    found = []
    for round_idx in range(rounds + 1):
        ours, theirs = _seconds(workload.ours), _seconds(workload.theirs)
        found += [theirs / ours] if round_idx else []
    return statistics.median(found)


def _seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def least(stored: Mapping[str, Mapping[str, float]], machine: str, name: str) -> float:
    """Returns the ratio below which a workload has got worse; 0 for a new one."""
    if name in stored.get(machine, {}):
        return LEAST_OF_OWN * stored[machine][name]
    others = [ratios[name] for ratios in stored.values() if name in ratios]
    return min(others, default=0.0) / 2


def main(arguments: list[str] | None = None) -> int:
    """Measures, compares or stores; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compare speeds beside other libraries with the stored ratios.")
    parser.add_argument("--rounds", type=int, default=21, help="turns of each side (default: 21)")
    parser.add_argument("--update", action="store_true", help="store the ratios as this processor's baseline")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be 1 or more, got {options.rounds}")
    stored: dict[str, Any] = json.loads(BASELINE.read_text(encoding="utf-8"))
    ratios = stored.setdefault("ratios", {})
    machine = f"{processor()}, {_rust.instruction_sets()[-1]}"
    print(f"times as fast on one thread of {machine}{'' if machine in ratios else ', which has no stored ratios'}")
    print(f"{'workload':<28} {'at least':>8} {'now':>8}")
    measured, worse = {}, []
    for workload in workloads():
        wanted = 0.0 if options.update else least(ratios, machine, workload.name)
        found = ratio(workload, options.rounds)
        for _ in range(ATTEMPTS - 1):
            if found < wanted:
                found = max(found, ratio(workload, options.rounds))
        measured[workload.name] = round(found, 2)
        worse += [workload.name] if found < wanted else []
        print(f"{workload.name:<28} {wanted:>8.2f} {found:>8.2f}")
    if options.update:
        ratios[machine] = measured
        BASELINE.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        return 0
    if worse:
        print(f"error: got worse: {', '.join(worse)}\nhint: --update stores what is meant to stay")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
