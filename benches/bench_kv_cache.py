"""The key-value cache in int8 beside the model's own type: bytes, decode speed by context, perplexity, with SmolLM2.

`python benches/bench_kv_cache.py TEXT` writes `benches/results/kv_cache.json`. Both caches hold random keys and values
and decode in turn, a round each, on the threads that `OMP_NUM_THREADS` says; a figure is the median of all rounds. The
weights are those of the Q4_1 file, expanded to bf16, and packed as they are: a step reads them too, and the fewer they
are, the more the cache counts. The first 20 KB of TEXT are scored in windows of the whole context, in fp32 and in bf16.
In bf16, rounded activations move a perplexity by about 0.1 % in either direction, whatever is changed; fp32 shows what
the cache itself costs.
`--only speed` or `--only perplexity` keeps the other's results.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from llm import LLM, evaluate
from llm._rust import instruction_sets
from llm.inference import EngineConfig
from llm.inference.kv_cache import KVCache, cache_dtype, dtype_name
from llm.inference.runners.base import Step
from llm.inference.runners.cpu import KernelModelRunner
from llm.models import DecoderModel
from llm.models.costs import kv_bytes_per_token
from llm.models.layers.cached import INT8, keep
from llm.settings.engine import CacheDtype

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benches" / "peers")]

from serving_report import facts, load_average  # noqa: E402 - after the folders are in the path
from tests.fetch_data import CACHE  # noqa: E402

SOURCE = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Path(__file__).parent / "results" / "kv_cache.json"
CACHES: tuple[CacheDtype, ...] = ("auto", "int8")
NUM_BYTES, BLOCK_SIZE, STEPS = 20_480, 16, 8


class Decoder:
    """Requests of `context` tokens each that decode together, with a cache of random numbers."""

    def __init__(self, model: DecoderModel, name: CacheDtype, num_rows: int, context: int) -> None:
        per_request = (context + STEPS) // BLOCK_SIZE + 1
        dtype, threads = cache_dtype(name, model.dtype), torch.get_num_threads()
        cache = KVCache.allocate(model.config, per_request * num_rows, BLOCK_SIZE, dtype, model.device)
        torch.manual_seed(0)
        for part in (*cache.keys, *cache.values):
            for block in part.split(256):
                shape = (*block.shape[:3], model.config.head_width)
                block.copy_(keep(torch.randn(shape, dtype=torch.bfloat16), dtype))
        self._runner = KernelModelRunner(model, cache, threads)
        tables = np.arange(per_request * num_rows, dtype=np.int32).reshape(num_rows, per_request)
        ids = np.full(num_rows, 7)
        self._steps = [
            Step.of([(place, place + 1)] * num_rows, tables, ids, BLOCK_SIZE)
            for place in range(context, context + STEPS)
        ]

    def seconds(self) -> float:
        """Seconds of a step, the median of a few."""
        found = []
        for step in self._steps:
            started = time.perf_counter()
            self._runner.run(step)
            found.append(time.perf_counter() - started)
        return statistics.median(found)


def models() -> dict[str, DecoderModel]:
    """The weights, expanded and packed."""
    limits = {"max_model_len": 64, "kv_cache_memory_bytes": 16 << 20}
    found = {}
    for name, packed in (("bfloat16", False), ("Q4_1", True)):
        config = EngineConfig(packed_weights=packed, **limits)
        found[name] = LLM(SOURCE, "bfloat16", config=config).engine.runner.model
    return found


def speed(model: DecoderModel, num_rows: int, context: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of each cache, and int8's over the other's: the median of the rounds' own ratios."""
    decoders = [Decoder(model, name, num_rows, context) for name in CACHES]
    for decoder in decoders:
        decoder.seconds()
    times = [[decoder.seconds() for decoder in decoders] for _ in range(rounds)]
    plain, packed = (num_rows / statistics.median(column) for column in zip(*times, strict=True))
    ratios = sorted(first / second for first, second in times)
    return {
        "rows": num_rows,
        "context": context,
        "bfloat16": round(plain, 1),
        "int8": round(packed, 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio, middle half": [round(ratios[rounds // 4], 3), round(ratios[-1 - rounds // 4], 3)],
    }


def perplexities(text: bytes, dtype: Literal["float32", "bfloat16"]) -> dict[str, Any]:
    """Perplexity of a text with each cache, computed in `dtype`, and how much int8 adds in per cent."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "text.txt"
        file.write_text(text.decode("utf-8", "ignore"), encoding="utf-8")
        limits = [EngineConfig(kv_cache_dtype=name, packed_weights=False) for name in CACHES]
        reports = [evaluate(SOURCE, file, dtype=dtype, engine=config) for config in limits]
    plain, packed = (report.results[0].metrics["perplexity"].value for report in reports)
    return {dtype: plain, "int8": packed, "rise in per cent": 100 * (packed / plain - 1)}


def main() -> None:
    """Measures what is asked for and keeps the rest of the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="the text whose first 20 KB are scored")
    parser.add_argument("--only", choices=["speed", "perplexity"])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--rows", default="1,8")
    parser.add_argument("--contexts", default="128,1024,4096")
    arguments = parser.parse_args()
    result = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    load = load_average()
    weights = models()
    result["bytes a token"] = {
        dtype_name(dtype): kv_bytes_per_token(weights["Q4_1"].config, dtype) for dtype in (torch.bfloat16, INT8)
    }
    settings = {"threads": torch.get_num_threads(), "instructions": instruction_sets()[-1]}
    found = facts("python benches/bench_kv_cache.py TEXT", settings, [load])
    if arguments.only != "perplexity":
        result["speed"] = {"figures": [], **found}
        cases = itertools.product(
            weights, *(map(int, each.split(",")) for each in (arguments.rows, arguments.contexts))
        )
        for name, num_rows, context in cases:
            figure = speed(weights[name], num_rows, context, arguments.rounds)
            result["speed"]["figures"].append({"weights": name} | figure)
            print(json.dumps(result["speed"]["figures"][-1]), flush=True)
    if arguments.only != "speed":
        text = arguments.text.read_bytes()[:NUM_BYTES]
        computed = {f"computed in {dtype}": perplexities(text, dtype) for dtype in ("float32", "bfloat16")}
        result["perplexity"] = computed | found
        print(json.dumps(result["perplexity"]), flush=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
