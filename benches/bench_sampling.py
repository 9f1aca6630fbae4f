"""The sampler from Python beside torch, in turn, on the same fresh logits and as many threads.

`python benches/bench_sampling.py [--threads 1] [--rounds 15] [--dtype float32]` prints a table and writes
`benches/results/sampling.THREADS.DTYPE.json`. Each row's support is compared before anything is timed.

Besides the sampler itself, every round times torch tuned by hand (penalties by scatter, `topk`, all else on the k
left), the style of `transformers`' processors (each over the whole vocabulary), the least that a softmax has to do (the
maximum and the sum of exponentials, here and in torch), and `argmax`.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
TEMPERATURE, TOP_K, TOP_P, REPETITION = 0.8, 50, 0.9, 1.1
HISTORY = 512
VOCABULARIES = (32_768, 131_072, 151_936)
BATCHES = (1, 16, 64)
NO_IDS = np.array([], np.uint32)
BARS = {"hand": 3.0, "transformers": 100.0, "argmax": 5.0}
LEAST_BAR = 3.0


def set_threads() -> argparse.Namespace:
    """Reads the options, and says how many threads rayon and OpenMP may use before either is loaded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    return options


OPTIONS = set_threads() if __name__ == "__main__" else argparse.Namespace(threads=1, rounds=15, dtype="float32")

import torch  # noqa: E402 - after the number of threads is set

from llm import SamplingParams, _rust  # noqa: E402


class Case:
    """Logits (B, V) that are fresh for each call, as a model gives them: a few likely tokens over a broad floor."""

    def __init__(self, num_rows: int, vocab_size: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.empty(num_rows, vocab_size).exponential_(0.5, generator=generator).to(dtype)
        self.fresh = self.logits.clone()
        # The same memory as the sampler takes it.
        self.array = (self.fresh.view(torch.int16) if dtype == torch.bfloat16 else self.fresh).numpy()
        self.ids = np.ones(num_rows, np.uint32)
        self.history = torch.randint(0, vocab_size, (num_rows, HISTORY), generator=generator)
        self.prompts = list(self.history.numpy().astype(np.uint32))
        self.outputs = [NO_IDS] * num_rows
        self.seed = 0
        self.params = self.requests(temperature=TEMPERATURE, top_k=TOP_K, top_p=TOP_P, repetition_penalty=REPETITION)
        self.greedy = self.requests(temperature=0.0)

    def requests(self, **fields: float) -> list[_rust.RequestParams]:
        """A request a row, each with a seed of its own."""
        rows = range(len(self.logits))
        return [_rust.RequestParams(SamplingParams(max_tokens=1, seed=self.seed + row, **fields)) for row in rows]

    def renew(self) -> None:
        """New logits in the same memory, copied there: what a model's last multiplication leaves behind."""
        self.fresh.copy_(self.logits)

    def sample(self) -> np.ndarray:
        return _rust.sample(self.array, self.params, self.prompts, self.outputs).token_ids

    def sample_greedily(self) -> np.ndarray:
        return _rust.sample(self.array, self.greedy, self.outputs, self.outputs).token_ids

    def max_and_sum(self) -> None:
        """The least: `token_logprobs` with no alternatives (and the rank, a few chunks more)."""
        _rust.token_logprobs(self.array, self.ids)

    def max_and_sum_in_torch(self) -> torch.Tensor:
        highest = self.fresh.amax(-1, keepdim=True)
        return (self.fresh - highest).exp_().sum(-1)

    def penalize(self) -> torch.Tensor:
        seen = self.fresh.gather(1, self.history)
        return self.fresh.scatter_(1, self.history, torch.where(seen > 0, seen / REPETITION, seen * REPETITION))

    def hand_tuned_probabilities(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ranked probabilities (B, k) and their ids (B, k)."""
        values, ids = self.penalize().topk(TOP_K)
        probabilities = (values.float() / TEMPERATURE).softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        return probabilities.masked_fill_(before >= TOP_P, 0.0), ids

    def hand_tuned(self) -> torch.Tensor:
        probabilities, ids = self.hand_tuned_probabilities()
        return ids.gather(1, torch.multinomial(probabilities, 1))

    def processors(self) -> torch.Tensor:
        """One processor after the other, each of which returns logits of the whole vocabulary."""
        seen = torch.gather(self.fresh, 1, self.history)
        logits = self.fresh.scatter(1, self.history, torch.where(seen < 0, seen * REPETITION, seen / REPETITION))
        logits = logits.float() / TEMPERATURE
        logits = logits.masked_fill(logits < torch.topk(logits, TOP_K)[0][..., -1, None], -torch.inf)
        ranked, order = torch.sort(logits, descending=False)
        is_dropped = ranked.softmax(-1).cumsum(-1) <= 1 - TOP_P
        is_dropped[..., -1:] = False
        logits = logits.masked_fill(is_dropped.scatter(1, order, is_dropped), -torch.inf)
        return torch.multinomial(logits.softmax(-1), 1)


def assert_equal_support(case: Case) -> None:
    """What the sampler draws of the first row is what torch leaves of it."""
    case.renew()
    probabilities, ids = case.hand_tuned_probabilities()
    expected = set(ids[0][probabilities[0] > 0].tolist())
    fields = {"temperature": TEMPERATURE, "top_k": TOP_K, "top_p": TOP_P, "repetition_penalty": REPETITION}
    drawn = set()
    for seed in range(3000):
        row = case.logits[:1].clone()
        array = row.view(torch.int16).numpy() if row.dtype == torch.bfloat16 else row.numpy()
        request = _rust.RequestParams(SamplingParams(max_tokens=1, seed=seed, **fields))
        drawn |= set(_rust.sample(array, [request], case.prompts[:1], [NO_IDS]).token_ids.tolist())
    if drawn != expected:
        raise SystemExit(f"supports differ: {sorted(drawn ^ expected)}")


def measure(case: Case, rounds: int) -> dict[str, float]:
    """Median microseconds a row of each contender, in turn, after one warm-up."""
    contenders: dict[str, Callable[[], object]] = {
        "ours": case.sample,
        "hand": case.hand_tuned,
        "transformers": case.processors,
        "least": case.max_and_sum,
        "least in torch": case.max_and_sum_in_torch,
        "argmax": lambda: case.fresh.argmax(-1),
        "our argmax": case.sample_greedily,
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, work in contenders.items():
            case.renew()
            started = time.perf_counter()
            work()
            times[name].append((time.perf_counter() - started) * 1e6 / len(case.logits))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def ratios(row: dict[str, float]) -> dict[str, float]:
    """How many times faster than each, and how many times the least."""
    return {
        "hand": row["hand"] / row["ours"],
        "transformers": row["transformers"] / row["ours"],
        "argmax": row["argmax"] / row["our argmax"],
        "of the least": row["ours"] / min(row["least"], row["least in torch"]),
    }


def main() -> None:
    """Times all sizes and prints the table."""
    torch.set_num_threads(OPTIONS.threads)
    dtype = getattr(torch, OPTIONS.dtype)
    facts = {
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "threads": OPTIONS.threads,
        "dtype": OPTIONS.dtype,
        "rounds": OPTIONS.rounds,
        "load_average": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
    }
    print(facts)
    print(
        "µs a row     V   B     ours     hand  transf.    least  torch's   argmax     ours | "
        "x hand x transf. x argmax of least"
    )
    results = {}
    for vocab_size in VOCABULARIES:
        for num_rows in BATCHES:
            case = Case(num_rows, vocab_size, dtype)
            if num_rows == 1:
                assert_equal_support(case)
            row = measure(case, OPTIONS.rounds)
            of = ratios(row)
            results[f"{num_rows}x{vocab_size}"] = {"us_per_row": row, "ratios": of}
            names = ("ours", "hand", "transformers", "least", "least in torch", "argmax", "our argmax")
            numbers = " ".join(f"{row[name]:8.1f}" for name in names)
            met = f"{of['hand']:6.2f} {of['transformers']:8.1f} {of['argmax']:8.2f} {of['of the least']:8.2f}"
            print(f"{vocab_size:>13} {num_rows:>3} {numbers} | {met}", flush=True)
    print(
        f"wanted: hand {BARS['hand']}, transformers {BARS['transformers']}, argmax {BARS['argmax']}, least {LEAST_BAR}"
    )
    file = RESULTS / f"sampling.{OPTIONS.threads}.{OPTIONS.dtype}.json"
    file.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
