"""Packed weights beside llama.cpp on the same files of SmolLM2: perplexity, greedy tokens, decode and prefill.

`python benches/bench_quantised.py TEXT` writes `benches/results/quantised.json`. llama.cpp quantises the files itself
and runs in an environment of its own: `python benches/peers/environments.py llama-cpp`. Both score the same windows of
TEXT. `--only scores` or `--only speed` runs one half and keeps the other's results; speed is taken in turn, on the
threads that `OMP_NUM_THREADS` says. A sweep that only reads memory is timed in the same turns: no decode step can take
less time than a sweep of its weights.

A greedy token is turned if the expanded weights, in fp32, prefer another one after the same tokens. Its gap, the
difference of both logits, is stated in standard deviations of what rounded activations do to that difference
(`tests/rounding.py`); the run fails if a gap exceeds four.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm import LLM, SamplingParams
from llm._rust import instruction_sets
from llm.export import export
from llm.inference import EngineConfig
from llm.inference.runners.base import Step
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.models.layers.packed import packed_matrices

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benches" / "peers")]

from environments import ALL, python_of  # noqa: E402 - after the folders are in the path
from serving_report import facts, load_average  # noqa: E402
from tests.fetch_data import CACHE  # noqa: E402
from tests.rounding import deviations  # noqa: E402

SOURCE = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Path(__file__).parent / "results" / "quantised.json"
# llama.cpp's numbers of file types.
FILES = {"Q4_1": 3, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "Q8_0": 7}
WINDOW, NUM_BYTES, PREFILL, NEW = 512, 20_480, 512, 64
SWEEP_BYTES, MOST_DEVIATIONS = 256 << 20, 4
PROMPTS = ["The capital of France is", "Once upon a time there was a", "def fibonacci(n):", "Water boils at"]
QUANTISE = """
import ctypes, sys, llama_cpp
settings = llama_cpp.llama_model_quantize_default_params()
settings.ftype = int(sys.argv[3])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(settings)))
"""
# Reads requests, a line each; answers with a line.
PEER = """
import json, sys, time
import numpy as np
from llama_cpp import Llama
file, threads, all_logits = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "scores"
model = Llama(file, n_ctx=1024, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False,
              logits_all=all_logits)
def likeliest(ids):
    model.eval(ids)
    return int(np.ctypeslib.as_array(model._ctx.get_logits_ith(-1), (model.n_vocab(),)).argmax())
for line in sys.stdin:
    kind, ids = json.loads(line)
    model.reset()
    started = time.perf_counter()
    if kind == "score":
        model.eval(ids)
        rows = model.scores[:len(ids) - 1].astype(np.float64)
        rows -= rows.max(1, keepdims=True)
        answer = float((np.log(np.exp(rows).sum(1)) - rows[np.arange(len(rows)), ids[1:]]).sum())
    else:
        token = likeliest(ids)
        if kind == "decode":
            started = time.perf_counter()
            for _ in range(NEW):
                token = likeliest([token])
        answer = time.perf_counter() - started
    print(json.dumps(answer), flush=True)
"""


class Peer:
    """llama.cpp in a process of its own."""

    def __init__(self, file: Path, threads: int, mode: str) -> None:
        command = [str(python_of("llama-cpp")), "-c", PEER.replace("NEW", str(NEW)), str(file), str(threads), mode]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, kind: str, ids: list[int]) -> float:
        """The loss of all tokens, or the seconds of prefill or decode."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([kind, ids]) + "\n")
        process.stdin.flush()
        return float(json.loads(process.stdout.readline()))

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def made(name: str, place: Path) -> Path:
    """A file of this type, made by llama.cpp from SmolLM2's values in fp32."""
    plain, file = place / "f32.gguf", place / f"{name}.gguf"
    place.mkdir(exist_ok=True)
    if not plain.exists():
        export(SOURCE, plain, "gguf", quantization="f32")
    if not file.exists():
        command = [str(python_of("llama-cpp")), "-c", QUANTISE, str(plain), str(file), str(FILES[name])]
        subprocess.run(command, check=True, capture_output=True)
    return file


def opened(file: Path, *, packed: bool) -> LLM:
    """The file on our kernels; no prompt finds another's cache."""
    limits = {"max_model_len": 1024, "kv_cache_memory_bytes": 256 << 20, "enable_prefix_caching": False}
    return LLM(file, "float32", config=EngineConfig(packed_weights=packed, **limits))


def kernel_logits(model: LLM, ids: list[int]) -> torch.Tensor:
    """Logits after each token of a sequence."""
    tables = np.arange(-(-len(ids) // 16), dtype=np.int32)[None]
    step = Step.of([(0, len(ids))], tables, np.array(ids, dtype=np.int64), 16)
    step.logits_indices = np.arange(len(ids), dtype=np.int64)
    return model.engine.runner.run(step).clone()


@torch.no_grad()
def plain_logits(model: DecoderModel, ids: list[int]) -> torch.Tensor:
    """The same by PyTorch, with expanded weights."""
    logits: torch.Tensor = model(
        torch.tensor(ids), positions_of((len(ids),)), ForwardContext.for_sequences((len(ids),))
    )
    return logits


def loss(logits: torch.Tensor, ids: list[int]) -> float:
    """Summed loss of all tokens but the first."""
    return float(torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(ids[1:]), reduction="sum"))


def scores(file: Path, text: str) -> dict[str, Any]:
    """Perplexities of packed weights, of llama.cpp and of expanded weights; greedy tokens beside expanded weights."""
    model, expanded = opened(file, packed=True), opened(file, packed=False).engine.runner.model
    ids = model.tokenizer.encode(text)
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids) - 1, WINDOW)]
    peer = Peer(file, torch.get_num_threads(), "scores")
    sums = np.array(
        [
            [
                loss(kernel_logits(model, window), window),
                peer.ask("score", window),
                loss(plain_logits(expanded, window), window),
            ]
            for window in windows
        ]
    )
    peer.close()
    ours, theirs, exact = np.exp(sums.sum(0) / sum(len(window) - 1 for window in windows)).tolist()
    return {
        "tokens": len(ids),
        "perplexity": {"packed": ours, "llama.cpp": theirs, "expanded": exact, "ratio": ours / theirs},
        "greedy": greedy(model, expanded),
    }


def greedy(model: LLM, expanded: DecoderModel) -> dict[str, Any]:
    """Tokens that the expanded weights would not choose after the same tokens, and by how much of a logit.

    Raises:
        AssertionError: A gap is too wide for rounded activations.
    """
    sampling = SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True)
    gaps: list[float] = []
    bounds: list[float] = []
    for prompt, output in zip(PROMPTS, model.generate(PROMPTS, sampling), strict=True):
        ids = [*model.tokenizer.encode(prompt), *output.token_ids]
        rows = plain_logits(expanded, ids[:-1])
        turned = []
        for place, token in enumerate(ids[1:]):
            best = int(rows[place].argmax())
            if place >= len(ids) - 1 - NEW and rows[place, best] > rows[place, token]:
                turned.append((place, best, token))
        gaps += [float(rows[place, best] - rows[place, token]) for place, best, token in turned]
        bounds += deviations(expanded, ids[:-1], turned) if turned else []
    ratios = [gap / bound for gap, bound in zip(gaps, bounds, strict=True)]
    assert max(ratios, default=0) <= MOST_DEVIATIONS, f"rounded activations can't explain {max(ratios)} deviations"
    return {
        "tokens": NEW * len(PROMPTS),
        "turned": len(gaps),
        "largest gap": max(gaps, default=0.0),
        "largest gap in deviations": max(ratios, default=0.0),
    }


def seconds(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def speed(file: Path, rounds: int) -> dict[str, Any]:
    """Tokens a second of both, medians of runs in turn: decode alone, and a prompt of 512 tokens."""
    model, peer = opened(file, packed=True), Peer(file, torch.get_num_threads(), "speed")
    prompt = model.tokenizer.encode(PROMPTS[1])
    long = (model.tokenizer.encode(Path(__file__).read_text(encoding="utf-8")) * 2)[:PREFILL]

    def run(ids: list[int], count: int) -> float:
        sampling = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        return seconds(lambda: model.generate([ids], sampling))

    turns = {
        "decode": (NEW, lambda: run(prompt, NEW + 1) - run(prompt, 1), lambda: peer.ask("decode", prompt)),
        "prefill": (PREFILL, lambda: run(long, 1), lambda: peer.ask("prefill", long)),
    }
    memory = torch.ones(SWEEP_BYTES // 4)
    sweeps: list[float] = []
    found: dict[str, Any] = {}

    def turn(ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[float, float]:
        sweeps.append(min(seconds(memory.sum) for _ in range(3)))
        return ours(), theirs()

    for kind, (count, ours, theirs) in turns.items():
        ours(), theirs()
        times = [turn(ours, theirs) for _ in range(rounds)]
        mine, other = (count / statistics.median(column) for column in zip(*times, strict=True))
        found[kind] = {"ours": round(mine, 1), "llama.cpp": round(other, 1), "ratio": round(mine / other, 2)}
    peer.close()
    num_bytes = sum(matrix.data.nbytes for matrix in packed_matrices(model.engine.runner.model))
    limit = SWEEP_BYTES / statistics.median(sweeps) / num_bytes
    found["decode"]["share of sweep"] = round(found["decode"]["ours"] / limit, 2)
    found["sweep"] = {"GB a second": round(SWEEP_BYTES / statistics.median(sweeps) / 1e9, 1), "bytes a step": num_bytes}
    return found


def main() -> None:
    """Runs what is asked for and keeps the rest of the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="the text whose first 20 KB are scored")
    parser.add_argument("--place", type=Path, default=CACHE / "quantised", help="directory of the files")
    parser.add_argument("--only", choices=["scores", "speed"])
    parser.add_argument("--files", default="Q4_1,Q4_K_M,Q6_K,Q8_0")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if python_of("llama-cpp") is None:
        parser.error("llama.cpp has no environment\nhint: python benches/peers/environments.py llama-cpp")
    text = arguments.text.read_bytes()[:NUM_BYTES].decode("utf-8", "ignore")
    result = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"files": {}}
    settings = {"threads": torch.get_num_threads(), "instructions": instruction_sets()[-1], "peer": ALL["llama-cpp"][0]}
    for name in arguments.files.split(","):
        file = made(name, arguments.place)
        row = result["files"].setdefault(name, {"bytes": file.stat().st_size})
        if arguments.only != "speed":
            row["scores"] = scores(file, text)
        if arguments.only != "scores":
            load = load_average()
            row["speed"] = speed(file, arguments.rounds) | {"load average before": round(load, 2)}
        print(name, json.dumps(row), flush=True)
        result |= facts("python benches/bench_quantised.py TEXT", settings, [load_average()])
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
