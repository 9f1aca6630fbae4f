"""Answers of eight clients that ask for several adapters, beside those of the base alone, with SmolLM2.

`python benches/bench_adapters.py` writes `benches/results/adapters.json`. One engine holds SmolLM2 in bf16 and four
adapters of all linear layers. Eight prompts are answered together, by the base, by one adapter, by two and by four in
turn. They take turns; a figure is the median of all rounds, and a ratio that of a round's own two figures. Threads are
those that `OMP_NUM_THREADS` says.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from llm import LLM, SamplingParams
from llm.inference import EngineConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benches" / "peers")]

from serving_report import facts, load_average  # noqa: E402 - after the folders are in the path
from tests.adapter_files import write_adapter  # noqa: E402
from tests.fetch_data import CACHE  # noqa: E402

SOURCE = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Path(__file__).parent / "results" / "adapters.json"
CLIENTS = 8
COUNTS = (0, 1, 2, 4)
PROMPTS = [f"The keeper of lighthouse {number} wrote in the log that night:" for number in range(CLIENTS)]


def opened(folder: Path, rank: int, packed: bool) -> LLM:
    """Returns the base with four adapters of random numbers, which change its answers a little."""
    count = max(COUNTS)
    adapters = {
        f"adapter-{idx}": write_adapter(folder / str(idx), SOURCE, seed=idx, rank=rank, size=0.01)
        for idx in range(count)
    }
    config = EngineConfig(packed_weights="auto" if packed else False)
    return LLM(SOURCE, "auto" if packed else "bfloat16", config=config, adapters=adapters)


def tokens_per_s(model: LLM, count: int, length: int) -> float:
    """Answers all prompts with `count` adapters in turn, 0 for the base, and returns the answers' tokens a second."""
    names = [f"adapter-{idx % count}" if count else None for idx in range(CLIENTS)]
    params = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True)
    begin = time.perf_counter()
    answers = model.generate(PROMPTS, params, adapter=names, progress=False)
    seconds = time.perf_counter() - begin
    return sum(len(answer.token_ids) for answer in answers) / seconds


def main() -> None:
    """Writes the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--packed", action="store_true", help="keep the file's packed weights; store nothing")
    options = parser.parse_args()
    before = load_average()
    with tempfile.TemporaryDirectory() as folder:
        model = opened(Path(folder), options.rank, options.packed)
        tokens_per_s(model, max(COUNTS), options.length)
        rounds = [[tokens_per_s(model, count, options.length) for count in COUNTS] for _ in range(options.rounds)]
    ratios = {
        count: sorted(figures[place] / figures[0] for figures in rounds) for place, count in enumerate(COUNTS) if count
    }
    quarter = options.rounds // 4
    settings = {"clients": CLIENTS, "answer_tokens": options.length, "rank": options.rank}
    result = facts("python benches/bench_adapters.py", settings, [before]) | {
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "tokens_per_s": {
            count: round(statistics.median(column), 1)
            for count, column in zip(COUNTS, zip(*rounds, strict=True), strict=True)
        },
        "ratio_to_base": {count: round(statistics.median(found), 3) for count, found in ratios.items()},
        "ratio_middle_half": {
            count: [round(found[quarter], 3), round(found[-1 - quarter], 3)] for count, found in ratios.items()
        },
    }
    if not options.packed:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
