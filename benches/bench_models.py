"""SmolLM2 here and in `transformers`, in turn, on the same weights and threads: load, prefill, decode, train.

`python benches/bench_models.py [--dtype bfloat16] [--rounds 7]` prints a table and writes
`benches/results/models.json`. Answers are compared before anything is timed.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tests.fetch_data import CACHE

from llm import LLM, SamplingParams
from llm.checkpoint import load_model
from llm.export import export
from llm.inference import EngineConfig
from llm.models import ForwardContext, positions_of

FILE = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Path(__file__).parent / "results"
PREFILL, PROMPT, NEW = 512, 142, 64
BARS = {
    "load": 2.0,
    "load gguf": 2.0,
    "prefill 512": 1.2,
    "first token of 512": 1.2,
    "decode": 1.0,
    "training step": 1.1,
}
LOAD = """
import sys, time
import torch
{imports}
started = time.perf_counter()
{load}
print(time.perf_counter() - started)
"""
OURS = ("from llm.checkpoint import load_model", "load_model(sys.argv[1], sys.argv[2])")
THEIRS = (
    "import transformers\nfrom transformers import AutoModelForCausalLM",
    "AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]))",
)
THEIRS_GGUF = (
    THEIRS[0],
    "AutoModelForCausalLM.from_pretrained(sys.argv[1], gguf_file=sys.argv[3], dtype=getattr(torch, sys.argv[2]))",
)


def load_seconds(code: tuple[str, str], *arguments: str) -> float:
    """Seconds to load in a process of its own, its imports not counted."""
    script = LOAD.format(imports=code[0], load=code[1])
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return float(done.stdout)


def seconds(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(rounds: int, ours: Callable[[], float], theirs: Callable[[], float]) -> dict[str, object]:
    """Medians and the ratio of two timings that alternate; each is warmed up once."""
    ours(), theirs()
    times = [(ours(), theirs()) for _ in range(rounds)]
    mine, other = (statistics.median(column) for column in zip(*times, strict=True))
    return {"ours_s": mine, "transformers_s": other, "ratio": other / mine, "rounds": rounds}


def main() -> None:
    """Times all and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        directory = str(export(FILE, Path(scratch) / "smollm2", "hf", dtype=options.dtype))
        results = measure(directory, dtype, options)
    facts = {"dtype": options.dtype, "threads": torch.get_num_threads(), "load_average": os.getloadavg()[0]}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(f"{facts} {versions}")
    for name, result in results.items():
        met = "yes" if result["ratio"] >= BARS[name] else "no"
        print(
            f"{name:<15} ours {result['ours_s'] * 1e3:9.1f} ms   transformers {result['transformers_s'] * 1e3:9.1f} ms"
            f"   ratio {result['ratio']:6.2f}   bar {BARS[name]} {met}"
        )
    file = RESULTS / f"models.{options.dtype}.json"
    file.write_text(json.dumps(facts | versions | {"results": results}, indent=1) + "\n")


def measure(directory: str, dtype: torch.dtype, options: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Every row of the table."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    ours = load_model(directory, options.dtype)
    ids = torch.randint(0, 49_000, (PREFILL,))
    context, positions = ForwardContext.for_sequences((PREFILL,)), positions_of((PREFILL,))
    with torch.inference_mode():
        difference = (ours(ids, positions, context) - theirs(ids[None]).logits[0]).abs().max()
    assert difference < (1e-3 if dtype == torch.float32 else 1.0), difference
    results = {
        "load": in_turn(
            options.rounds,
            lambda: load_seconds(OURS, directory, options.dtype),
            lambda: load_seconds(THEIRS, directory, options.dtype),
        ),
        "load gguf": in_turn(
            1,
            lambda: load_seconds(OURS, str(FILE), options.dtype),
            lambda: load_seconds(THEIRS_GGUF, str(CACHE), options.dtype, FILE.name),
        ),
    }

    def prefill_ours() -> None:
        with torch.inference_mode():
            ours(ids, positions, ForwardContext.for_sequences((PREFILL,), torch.tensor([PREFILL - 1])))

    def prefill_theirs() -> None:
        with torch.inference_mode():
            theirs(ids[None], logits_to_keep=1, use_cache=True)

    results["prefill 512"] = in_turn(options.rounds, lambda: seconds(prefill_ours), lambda: seconds(prefill_theirs))
    first_token = FirstToken(directory, options.dtype, ids)
    results["first token of 512"] = in_turn(
        options.rounds, lambda: seconds(first_token.run), lambda: seconds(prefill_theirs)
    )
    results["decode"] = in_turn(options.rounds, *decoders(directory, theirs, ids[:PROMPT], options.dtype))
    results["training step"] = in_turn(options.rounds, *trainers(ours, theirs, ids))
    return results


class FirstToken:
    """A prompt through the engine, as a user waits for it: its whole prefill and one token."""

    def __init__(self, directory: str, dtype: str, prompt: torch.Tensor) -> None:
        config = EngineConfig(max_model_len=1024, max_running_requests=1, enable_prefix_caching=False)
        self.model = LLM(directory, dtype, config=config)
        self.prompt = prompt.tolist()

    def run(self) -> None:
        self.model.generate([self.prompt], SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True))


def decoders(
    directory: str, theirs: torch.nn.Module, prompt: torch.Tensor, dtype: str
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Greedy decoding of one sequence, without the time of its prompt."""
    model = LLM(directory, dtype, config=EngineConfig(max_model_len=1024, max_running_requests=1))

    def generate(num_tokens: int) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        request_id = model.engine.add_request(prompt.tolist(), params)
        while model.engine.has_unfinished():
            model.engine.step()
        del request_id

    def generate_theirs(num_tokens: int) -> None:
        mask = torch.ones(1, len(prompt), dtype=torch.int64)
        theirs.generate(
            prompt[None],
            attention_mask=mask,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
        )

    def without_prompt(run: Callable[[int], None]) -> float:
        first = seconds(lambda: run(1))
        return (seconds(lambda: run(NEW)) - first) / (NEW - 1)

    return lambda: without_prompt(generate), lambda: without_prompt(generate_theirs)


def trainers(
    ours: torch.nn.Module, theirs: torch.nn.Module, ids: torch.Tensor
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Forward and backward of two sequences of 256 tokens."""
    lengths, labels = (256, 256), ids.roll(-1)
    context, positions = ForwardContext.for_sequences(lengths), positions_of(lengths)

    def step_ours() -> None:
        ours.train()
        loss = torch.nn.functional.cross_entropy(ours(ids, positions, context).float(), labels)
        loss.backward()
        ours.zero_grad(set_to_none=True)

    def step_theirs() -> None:
        theirs.train()
        logits = theirs(ids.view(2, 256), use_cache=False).logits.flatten(0, 1)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        theirs.zero_grad(set_to_none=True)

    return lambda: seconds(step_ours), lambda: seconds(step_theirs)


if __name__ == "__main__":
    main()
