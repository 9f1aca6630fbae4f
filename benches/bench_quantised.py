"""Packed weights beside other programs on the same files of SmolLM2: perplexity, greedy tokens, decode and prefill.

`python benches/bench_quantised.py TEXT` writes `benches/results/quantised.json`. Beside GGUF files, which llama.cpp
quantises itself, run llama.cpp and OpenVINO GenAI; beside GPTQ and AWQ directories, whose values are rounded to the
nearest, runs GPTQModel. All have environments of their own: `python benches/peers/environments.py llama-cpp openvino
gptqmodel`; one that is missing, or can't open a file, is left out, and that is said. llama.cpp and ours score the same
windows of TEXT. `--only scores` or `--only speed` runs one half and keeps the other's results. All take turns, on the
threads that `OMP_NUM_THREADS` says; a figure is the median of all rounds. "floats" are the expanded weights in bf16 on
our kernels, "our Q4_1" the GGUF file of that type. A sweep that only reads 256 MiB of memory is timed in the same
turns; weights that partly stay in a processor's cache are read faster.

A greedy token is turned if the expanded weights, in fp32, prefer another one after the same tokens. Its gap, the
difference of both logits, is stated in standard deviations of what rounded activations do to that difference
(`tests/rounding.py`); the run fails if a gap exceeds four.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

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
from tests.quantised_checkpoints import awq, gptq, write_quantised  # noqa: E402
from tests.rounding import deviations  # noqa: E402

SOURCE = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Path(__file__).parent / "results" / "quantised.json"
# llama.cpp's numbers of file types.
FILES = {"Q4_0": 2, "Q4_1": 3, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "Q8_0": 7}
DIRECTORIES = {"GPTQ": gptq(sym=True), "GPTQ act-order": gptq(sym=True, act_order=True), "AWQ": awq()}
# GPTQModel needs most of a turn's time, so its turns are of fewer tokens.
WINDOW, NUM_BYTES, PREFILL, NEW, FEW = 512, 20_480, 512, 64, 16
SWEEP_BYTES, MOST_DEVIATIONS = 256 << 20, 4
PROMPTS = ["The capital of France is", "Once upon a time there was a", "def fibonacci(n):", "Water boils at"]
# Environment and mode of each program, by what runs beside a file.
GGUF_PEERS = {"llama.cpp": ("llama-cpp", "speed"), "openvino-genai": ("openvino", "speed")}
GPTQ_PEERS = {"gptqmodel bfloat16": ("gptqmodel", "bfloat16"), "gptqmodel float32": ("gptqmodel", "float32")}
QUANTISE = """
import ctypes, sys, llama_cpp
settings = llama_cpp.llama_model_quantize_default_params()
settings.ftype = int(sys.argv[3])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(settings)))
"""


class Peer:
    """Another program in a process of its own.

    Raises:
        ValueError: It can't open the file, or ended.
    """

    def __init__(self, name: str, file: Path, mode: tuple[str, str]) -> None:
        worker = ROOT / "benches" / "peers" / "quantised_worker.py"
        words = [name.split(maxsplit=1)[0], str(file), str(torch.get_num_threads()), mode[1]]
        with (file.parent / "peers.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(python_of(mode[0])), str(worker), *words],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        if (reason := self._answer()) is not None:
            self.close()
            raise ValueError(reason)

    def ask(self, kind: str, ids: list[int], count: int = 0) -> float:
        """The loss of all tokens, or the seconds of prefill or decode."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([kind, ids, count]) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise ValueError(f"it ended with exit code {self._process.wait()}: see peers.log beside the files")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def peers_of(name: str, file: Path) -> dict[str, Peer]:
    """The programs that open a file."""
    found: dict[str, Peer] = {}
    for peer, mode in (GGUF_PEERS if name in FILES else GPTQ_PEERS).items():
        try:
            if python_of(mode[0]) is None:
                raise ValueError("it has no environment")
            found[peer] = Peer(peer, file, mode)
        except ValueError as error:
            print(f"{name}: {peer} is left out: {error}", flush=True)
    return found


def made(name: str, place: Path) -> Path:
    """SmolLM2 in this format: a file by llama.cpp from the values in fp32, or a directory from those in bf16."""
    place.mkdir(exist_ok=True)
    if name in DIRECTORIES:
        directory, plain = place / name.replace(" ", "-"), place / "bf16"
        if not plain.exists():
            export(SOURCE, plain, "hf", dtype="bfloat16")
        if not directory.exists():
            write_quantised(plain, directory, DIRECTORIES[name])
        return directory
    plain, file = place / "f32.gguf", place / f"{name}.gguf"
    if not plain.exists():
        export(SOURCE, plain, "gguf", quantization="f32")
    if not file.exists():
        command = [str(python_of("llama-cpp")), "-c", QUANTISE, str(plain), str(file), str(FILES[name])]
        subprocess.run(command, check=True, capture_output=True)
    return file


def opened(file: Path, *, packed: bool, dtype: Literal["float32", "bfloat16"] = "float32") -> LLM:
    """The file on our kernels; no prompt finds another's cache."""
    limits = {"max_model_len": 1024, "kv_cache_memory_bytes": 256 << 20, "enable_prefix_caching": False}
    return LLM(file, dtype, config=EngineConfig(packed_weights=packed, **limits))


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
    """Perplexities of packed weights, of expanded ones and of llama.cpp; greedy tokens beside expanded weights."""
    model, expanded = opened(file, packed=True), opened(file, packed=False).engine.runner.model
    scorers = {
        "packed": lambda ids: loss(kernel_logits(model, ids), ids),
        "expanded": lambda ids: loss(plain_logits(expanded, ids), ids),
    }
    if file.is_file():
        peer = Peer("llama.cpp", file, ("llama-cpp", "scores"))
        scorers["llama.cpp"] = partial(peer.ask, "score")
    ids = model.tokenizer.encode(text)
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids) - 1, WINDOW)]
    count = sum(len(window) - 1 for window in windows)
    perplexity = {name: math.exp(sum(map(score, windows)) / count) for name, score in scorers.items()}
    if file.is_file():
        peer.close()
        perplexity["ratio"] = perplexity["packed"] / perplexity["llama.cpp"]
    return {"tokens": len(ids), "perplexity": perplexity, "greedy": greedy(model, expanded)}


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


class Ours:
    """A model on our kernels, asked as a peer is."""

    def __init__(self, model: LLM) -> None:
        self._model = model

    def ask(self, kind: str, ids: list[int], count: int = 0) -> float:
        """Seconds of prefill, or of `count` tokens after the first."""
        first = self._seconds(ids, 1)
        return first if kind == "prefill" else self._seconds(ids, count + 1) - first

    def _seconds(self, ids: list[int], count: int) -> float:
        sampling = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        return seconds(lambda: self._model.generate([ids], sampling))


def speed(name: str, file: Path, place: Path, rounds: int) -> dict[str, Any]:
    """Tokens a second of all, medians of runs in turn: decode alone, and a prompt of 512 tokens."""
    # What directories don't quantise, embeddings above all, is in the type that they store.
    model = opened(file, packed=True, dtype="bfloat16" if name in DIRECTORIES else "float32")
    peers = peers_of(name, file)
    runners = {"ours": Ours(model), **peers, "floats": Ours(opened(file, packed=False, dtype="bfloat16"))}
    if name in DIRECTORIES:
        runners["our Q4_1"] = Ours(opened(made("Q4_1", place), packed=True))
    prompt = model.tokenizer.encode(PROMPTS[1])
    long = (model.tokenizer.encode(Path(__file__).read_text(encoding="utf-8")) * 2)[:PREFILL]
    memory = torch.ones(SWEEP_BYTES // 4)
    sweeps: list[float] = []
    found: dict[str, Any] = {}
    for kind, ids, count in (("decode", prompt, FEW if name in DIRECTORIES else NEW), ("prefill", long, PREFILL)):
        times: dict[str, list[float]] = {runner: [] for runner in runners}
        for round_idx in range(rounds + 1):
            sweeps.append(min(seconds(memory.sum) for _ in range(3)))
            for runner, each in runners.items():
                taken = each.ask(kind, ids, count)
                times[runner] += [taken] if round_idx else []
        found[kind] = {runner: round(count / statistics.median(each), 1) for runner, each in times.items()}
        mine = found[kind]["ours"]
        found[kind]["ratios"] = {other: round(mine / found[kind][other], 2) for other in runners if other != "ours"}
    for peer in peers.values():
        peer.close()
    num_bytes = sum(matrix.data.nbytes for matrix in packed_matrices(model.engine.runner.model))
    limit = SWEEP_BYTES / statistics.median(sweeps) / num_bytes
    found["decode"]["share of sweep"] = round(found["decode"]["ours"] / limit, 2)
    found["sweep"] = {"GB a second": round(SWEEP_BYTES / statistics.median(sweeps) / 1e9, 1), "bytes a step": num_bytes}
    return found


def size_of(file: Path) -> int:
    """Bytes of a file, or of the weights of a directory."""
    return file.stat().st_size if file.is_file() else (file / "model.safetensors").stat().st_size


def main() -> None:
    """Runs what is asked for and keeps the rest of the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="the text whose beginning is scored")
    parser.add_argument("--bytes", type=int, default=NUM_BYTES, help="of the text (default: 20,480)")
    parser.add_argument("--place", type=Path, default=CACHE / "quantised", help="directory of the files")
    parser.add_argument("--only", choices=["scores", "speed"])
    parser.add_argument("--files", default=",".join((*FILES, *DIRECTORIES)), help="formats, comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if python_of("llama-cpp") is None:
        parser.error("llama.cpp has no environment\nhint: python benches/peers/environments.py llama-cpp")
    text = arguments.text.read_bytes()[: arguments.bytes].decode("utf-8", "ignore")
    result = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"files": {}}
    started = load_average()
    settings = {
        "threads": torch.get_num_threads(),
        "instructions": instruction_sets()[-1],
        "peers": {name: ALL[name][0] for name in ("llama-cpp", "openvino", "gptqmodel")},
    }
    for name in arguments.files.split(","):
        file = made(name, arguments.place)
        row = result["files"].setdefault(name, {"bytes": size_of(file)})
        if arguments.only != "speed":
            row["scores"] = scores(file, text)
        if arguments.only != "scores":
            load = {"load average before": round(load_average(), 2)}
            row["speed"] = speed(name, file, arguments.place, arguments.rounds) | load
        print(name, json.dumps(row), flush=True)
        result |= facts("python benches/bench_quantised.py TEXT", settings, [started])
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
