"""Answers of a step of GRPO beside `generate` of transformers, with SmolLM2: speed, and the hand-over.

`python benches/bench_rollouts.py` writes `benches/results/rollouts.json`. Both draw groups of answers to the same
prompts from the whole distribution in fp32, on the threads that `OMP_NUM_THREADS` says. No answer ends before its last
token, so both draw equally many. They take turns; a figure is the median of all rounds.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers

from llm.checkpoint import resolve
from llm.export import export
from llm.models import DecoderModel
from llm.tokenization import BaseTokenizer
from llm.training.rollouts import RolloutEngine

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benches" / "peers")]

from serving_report import facts, load_average  # noqa: E402 - after the folders are in the path
from tests.fetch_data import CACHE  # noqa: E402

SOURCE = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Path(__file__).parent / "results" / "rollouts.json"
PROMPTS = (
    "The keeper of the lighthouse wrote in the log that night:",
    "Three reasons to learn how a compiler works are",
    "A train leaves the harbour at noon with 48 people, and at each of its stops",
    "Dear editor, I read with some surprise in yesterday's paper that",
)


class Ours:
    """The engine of a training process."""

    def __init__(self, model: DecoderModel, tokenizer: BaseTokenizer, group: int, length: int) -> None:
        self.model = model
        self.prompts = [tokenizer.encode(text) for text in PROMPTS]
        self.engine = RolloutEngine(tokenizer, 256, group * len(PROMPTS))
        params = self.engine.params(group, 0, length)
        self.params = [msgspec.structs.replace(params, ignore_eos=True, stop=(), seed=seed) for seed in range(4)]
        self.handovers: list[float] = []

    def draw(self) -> int:
        """Draws a step's answers and returns their number of tokens."""
        self.engine.take_over(self.model)
        self.handovers.append(self.engine.handover_s)
        return sum(len(one.token_ids) for group in self.engine.draw(self.prompts, self.params) for one in group)


class Theirs:
    """`generate` on all prompts padded to one batch."""

    def __init__(self, folder: str, group: int, length: int) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self.inputs = tokenizer(list(PROMPTS), return_tensors="pt", padding=True)
        self.settings: dict[str, Any] = {
            "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": group,
            "max_new_tokens": length, "min_new_tokens": length, "pad_token_id": tokenizer.pad_token_id,
        }  # fmt: skip
        self.length = length

    @torch.inference_mode()
    def draw(self) -> int:
        """Draws a step's answers and returns their number of tokens."""
        found = self.model.generate(**self.inputs, **self.settings)
        return len(found) * self.length


def timed(side: Ours | Theirs) -> float:
    """Returns tokens a second of one step."""
    begin = time.perf_counter()
    return side.draw() / (time.perf_counter() - begin)


def main() -> None:
    """Writes the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    options = parser.parse_args()
    before = load_average()
    checkpoint = resolve(SOURCE)
    model = checkpoint.model("float32", torch.device("cpu"))
    assert isinstance(model, DecoderModel)
    with tempfile.TemporaryDirectory() as folder:
        export(SOURCE, f"{folder}/hf")
        ours = Ours(model, checkpoint.tokenizer(), options.group, options.length)
        theirs = Theirs(f"{folder}/hf", options.group, options.length)
        ours.draw()
        pairs = [(timed(ours), timed(theirs)) for _ in range(options.rounds)]
    speeds = [round(statistics.median(column), 1) for column in zip(*pairs, strict=True)]
    settings = {"prompts": len(PROMPTS), "group": options.group, "answer_tokens": options.length}
    result = facts("python benches/bench_rollouts.py", settings, [before]) | {
        "threads": torch.get_num_threads(),
        "transformers": transformers.__version__,
        "rounds": options.rounds,
        "tokens_per_s": {"engine": speeds[0], "transformers": speeds[1]},
        "ratio": round(statistics.median(one / other for one, other in pairs), 2),
        "handover_ms": round(1000 * statistics.median(ours.handovers), 1),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
