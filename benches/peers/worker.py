"""One contender, one group of rows, one process: checks its output against tiktoken's hashes, then times it.

Called by run.py with a job as JSON; writes the result to standard output as JSON.
"""

import gc
import hashlib
import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import texts
from contenders import CONTENDERS, TRAINERS
from methods import Methods
from workloads import GROUPS, VOCAB_SIZE, Group

# Where the first call takes longer, it is the one that counts: others are tens of times faster.
SLOW_S = 4.0


@dataclass
class Row:
    """A call to time. `check` does the same work once, as the warm-up, and gives what the hash is taken of.

    `variant` gives the call for a repetition where the same text again would only be looked up.
    """

    num_bytes: int
    num_calls: int
    call: Callable[[], object]
    check: Callable[[], object]
    variant: Callable[[int], Callable[[], object]] | None = None


class Bench:
    """The rows of one job."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.group: Group = GROUPS[job["group"]]
        self.data = Path(job["data"])
        self.scratch = Path(job["scratch"])

    def methods(self) -> Methods:
        """A tokenizer that has seen no text."""
        vocabulary = texts.vocabulary(self.job["vocabulary"], self.data)
        return CONTENDERS[self.job["contender"]][1](vocabulary, self.group.threads)

    def method(self) -> Callable[[Any], Any] | None:
        methods = self.methods()
        if self.group.method == "encode_any":
            return methods.encode_array or methods.encode_list
        method = getattr(methods, self.group.method)
        if method is None and self.job["reference"]:
            return getattr(methods, self.group.method.replace("array", "list"))
        return method

    def row(self, name: str) -> Row | None:
        """The row `name` with a fresh tokenizer, None if the contender has no such call."""
        if (method := self.method()) is None:
            return None
        kind = self.group.name.split("-")[0]
        return {"encode": self._encode, "chat": self._chat, "decode": self._decode, "worst": self._worst}[kind](
            name, method
        )

    def _encode(self, name: str, method: Callable[[str], Any]) -> Row:
        text = _cached(texts.corpus, name, self.data)
        if self.group.name.endswith("fresh"):
            seen, text = _cached(texts.halves, text)
            method(seen)
        return _once(method, text)

    def _worst(self, name: str, method: Callable[[str], Any]) -> Row:
        method(_cached(texts.corpus, "prose", self.data)[:100_000])
        text = _cached(texts.worst_case, name, int(self.group.name.split("-")[1]), self.data)
        row = _once(method, text)
        row.variant = lambda repetition: _once(method, text[1 + repetition :]).call
        return row

    def _chat(self, name: str, method: Callable[[Any], Any]) -> Row:  # noqa: ARG002
        messages = _cached(texts.messages, self.data)
        num_bytes = sum(len(message.encode()) for message in messages)
        if "batch" in self.group.name:
            return Row(num_bytes, len(messages), lambda: method(messages), lambda: method(messages))
        return _each(method, messages, num_bytes)

    def _decode(self, name: str, method: Callable[[Any], Any]) -> Row:
        text = _cached(texts.corpus, name, self.data)
        ids = np.load(self.scratch / f"{self.job['vocabulary']} {name}.npy")
        as_input = np.ndarray.tolist if self.group.method == "decode_list" else np.ascontiguousarray
        if "long" in self.group.name:
            whole = as_input(ids)
            return Row(len(text.encode()), 1, lambda: method(whole), lambda: method(whole))
        parts = [as_input(part) for part in np.split(ids[: len(ids) // 65 * 65], len(ids) // 65)]
        return _each(method, parts, len(text.encode()))

    def measure(self, name: str, expected: str | None) -> dict[str, Any]:
        """Seconds of each repetition, or why there are none."""
        if (row := self.row(name)) is None:
            return {"absent": True}
        clock = _clock(self.job, self.group)
        started = clock()
        output = row.check()
        first_s = clock() - started
        digest = _digest(output, self.group.method)
        del output
        result: dict[str, Any] = {"hash": digest, "bytes": row.num_bytes, "calls": row.num_calls, "seconds": []}
        if expected is not None and digest != expected:
            return {"unequal": True}
        gc.collect()
        if first_s > SLOW_S:
            return result | {"seconds": [first_s]}
        for repetition in range(self.job["repetitions"]):
            if self.group.name.endswith(("cold", "fresh")):
                row = self.row(name)
                assert row is not None
            call = row.variant(repetition) if row.variant else row.call
            result["seconds"].append(_seconds(call, clock))
        return result


def _clock(job: dict[str, Any], group: Group) -> Callable[[], float]:
    """CPU time, if asked for, tells of one thread only."""
    return time.process_time if job["cpu_time"] and group.threads == 1 else time.perf_counter


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """One call; what it gives is freed outside the timed part."""
    started = clock()
    output = call()
    seconds = clock() - started
    del output
    return seconds


def _once(method: Callable[[str], Any], text: str) -> Row:
    return Row(len(text.encode()), 1, lambda: method(text), lambda: method(text))


def _each(method: Callable[[Any], Any], inputs: list[Any], num_bytes: int) -> Row:
    def call() -> None:
        for item in inputs:
            method(item)

    return Row(num_bytes, len(inputs), call, lambda: [method(item) for item in inputs])


_CACHE: dict[Any, Any] = {}


def _cached(make: Callable[..., Any], *arguments: Any) -> Any:
    key = (make.__name__, *arguments)
    if key not in _CACHE:
        _CACHE[key] = make(*arguments)
    return _CACHE[key]


def _digest(output: Any, method: str) -> str:
    """SHA-256 of ids and of the lengths of texts, or of decoded text; says so if the output is of another kind."""
    if method.startswith("decode"):
        decoded = output if isinstance(output, list) else [output]
        return hashlib.sha256("\0".join(decoded).encode()).hexdigest()
    if method == "batch_array" and not isinstance(output, list):
        output = _split(output)
    batch = output if _is_batch(output) else [output]
    kinds = {"encode_list": list, "batch_list": list, "encode_array": np.ndarray, "batch_array": np.ndarray}
    if not all(isinstance(ids, kinds.get(method, object)) for ids in batch):
        return f"not {method}: {type(batch[0])}"
    hashed = hashlib.sha256(np.array([len(ids) for ids in batch], np.uint64).tobytes())
    for ids in batch:
        hashed.update(np.asarray(ids, np.uint32).tobytes())
    return hashed.hexdigest()


def _is_batch(output: Any) -> bool:
    return isinstance(output, list) and len(output) > 0 and not isinstance(output[0], int)


def _split(output: Any) -> list[np.ndarray]:
    """The array of each text, of (ids, offsets) or of an awkward array."""
    if isinstance(output, tuple):
        ids, offsets = output
        return np.split(np.asarray(ids), np.asarray(offsets)[1:-1].astype(np.int64))
    return [np.asarray(row) for row in output]


def _train(job: dict[str, Any], group: Group) -> dict[str, Any]:
    """One training with the process's peak memory; the tokens go to a file, for ties let them differ a little."""
    _, splits, train = TRAINERS[job["contender"]]
    if group.method not in splits:
        return {"absent": True}
    scratch = Path(job["scratch"])
    clock = _clock(job, group)
    started = clock()
    tokens = train(scratch / "mix.txt", group.method, group.threads, VOCAB_SIZE)
    seconds = clock() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    written = "\n".join(sorted(token.hex() for token in tokens))
    (scratch / f"{group.method} {job['contender']}.tokens").write_text(written)
    return {"seconds": [seconds], "bytes": (scratch / "mix.txt").stat().st_size, "calls": 1, "peak_rss": peak}


def _rows(job: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    group = GROUPS[job["group"]]
    if group.name.startswith("train"):
        yield group.rows[0], _train(job, group)
        return
    bench = Bench(job)
    for name in group.rows:
        yield name, bench.measure(name, job["expected"].get(name))


def save_ids(job: dict[str, Any]) -> None:
    """tiktoken's ids of the texts that others decode."""
    methods = Bench(job).methods()
    for name in GROUPS[job["group"]].rows:
        ids = methods.encode_array(texts.corpus(name, Path(job["data"])))
        np.save(Path(job["scratch"]) / f"{job['vocabulary']} {name}.npy", ids)


def main() -> None:
    job = json.loads(sys.argv[1])
    if job["pin"] is not None and GROUPS[job["group"]].threads == 1:
        os.sched_setaffinity(0, {job["pin"]})
    gc.disable()
    if job["reference"] and job["group"].startswith("decode"):
        save_ids(job)
    rows = dict(_rows(job))
    table = TRAINERS if job["group"].startswith("train") else CONTENDERS
    version = importlib.metadata.version(table[job["contender"]][0]) if job["contender"] != "ours" else "this tree"
    print(json.dumps({"version": version, "rows": rows}))


if __name__ == "__main__":
    main()
