"""Training steps of this package's loop beside its peers, on a CPU: tokens a second and peak memory.

`python benches/bench_training.py [--cases 12m-256] [--precisions float32] [--rounds 5] [--threads 2]` lets all loops
take turns, step by step, from the same weights on the same tokens; first losses are compared before anything is timed.
It prints a table and writes `benches/results/training.json` (`--merge` keeps its other cases). For this package's loop,
it also gives the share of a step outside forward, backward and optimizer. litgpt runs in an environment of its own,
made by `python benches/peers/environments.py litgpt`, or under `--litgpt-python`; without it, litgpt is left out.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peers.environments import python_of

from llm.checkpoint import write_model
from llm.models import DecoderModel
from llm.settings.model import ModelConfig

PEERS = Path(__file__).parent / "peers"
RESULTS = Path(__file__).parent / "results"
LLAMA_LOOPS = ("ours", "plain", "trainer", "litgpt")
GPT_LOOPS = ("ours", "nanogpt")
CHAR = ModelConfig(
    vocab_size=65,
    hidden_size=128,
    intermediate_size=512,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    mlp="gelu",
    mlp_bias=False,
    norm="layer_norm",
    position_encoding="learned",
)
SMALL = ModelConfig(
    vocab_size=5120,
    hidden_size=384,
    intermediate_size=1024,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=6,
    max_position_embeddings=512,
)
SMOLLM2 = ModelConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=512,
)
# Model, tokens of a sample, samples of a batch.
CASES = {
    "char": (CHAR, 64, 12),
    "12m-256": (SMALL, 256, 4),
    "12m-512": (SMALL, 512, 2),
    "135m-256": (SMOLLM2, 256, 4),
    "135m-512": (SMOLLM2, 512, 2),
}
WARM_UP_STEPS = 2
# Steps of a turn of about 0.3 s. A step of 30 ms that followed another program's would find neither its weights nor
# its code in the caches, and its threads asleep, which happens to no run.
STEPS_PER_TURN = {"char": 10}
# Turns that a round stands for, where they are that short.
TURNS_PER_ROUND = {"char": 12}


class Loop:
    """A contender in a process of its own."""

    def __init__(self, name: str, directory: Path, python: Path, errors: Path) -> None:
        self.name = name
        self.tokens_per_s: list[float] = []
        self.tokens_per_cpu_s: list[float] = []
        self.overheads: list[float] = []
        self.seconds_of_turns: list[float] = []
        self.errors = errors
        command = [str(python), str(PEERS / "training_loops.py"), name, str(directory)]
        with errors.open("w") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
            )
        self.state = self._read()
        self.base_mib = self.state["peak_mib"]

    def step(self) -> float:
        """Runs one step and returns its seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.state = self._read()
        return float(self.state["seconds"])

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"seconds"'):
                return dict(json.loads(line))
        raise SystemExit(f"{self.name} ended:\n{self.errors.read_text()[-2000:]}")

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(case: str, precision: str, options: argparse.Namespace) -> dict[str, object]:
    """Times the loops of one case."""
    config, block, batch = CASES[case]
    names = options.loops or (GPT_LOOPS if case == "char" else LLAMA_LOOPS)
    facts = {"block": block, "batch": batch, "vocab": config.vocab_size, "precision": precision}
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        directory = Path(scratch)
        torch.manual_seed(0)
        write_model(directory, DecoderModel(config), None)
        (directory / "case.json").write_text(json.dumps(facts | {"threads": options.threads}))
        loops = []
        for name in names:
            python = Path(sys.executable)
            if name.startswith("litgpt"):
                python = options.litgpt_python or python_of("litgpt")
            if python is not None:
                loops.append(Loop(name, directory, python, directory / f"{name}.log"))
                stack.callback(loops[-1].close)
        rounds = options.rounds * TURNS_PER_ROUND.get(case, 1)
        take_turns(loops, rounds, STEPS_PER_TURN.get(case, 1), block * batch)
        check_losses(loops, precision)
        rows = [report(loop, loops) for loop in loops]
        return facts | {"parameters": DecoderModel(config).num_parameters(), "loops": rows}


def take_turns(loops: list[Loop], rounds: int, steps: int, tokens: int) -> None:
    """Lets each loop run some steps after the other, in an order that turns."""
    for loop in loops:
        for _ in range(WARM_UP_STEPS):
            loop.step()
    for turn in range(rounds):
        for at in range(len(loops)):
            loop = loops[(at + turn) % len(loops)]
            loop.seconds_of_turns.append(0.0)
            for _ in range(steps):
                seconds = loop.step()
                loop.seconds_of_turns[-1] += seconds
                loop.tokens_per_s.append(tokens / seconds)
                loop.tokens_per_cpu_s.append(tokens / loop.state["cpu_seconds"])
                if loop.state["parts_seconds"] is not None:
                    loop.overheads.append(1 - loop.state["parts_seconds"] / loop.state["seconds"])


def check_losses(loops: list[Loop], precision: str) -> None:
    """Stops unless all first losses agree."""
    losses = {loop.name: loop.state["loss"] for loop in loops}
    allowed = 1e-4 if precision == "float32" else 2e-2
    if max(losses.values()) - min(losses.values()) > allowed:
        raise SystemExit(f"first losses differ: {losses}")


def report(loop: Loop, loops: list[Loop]) -> dict[str, object]:
    """Returns the figures of a loop; its ratio is the median over rounds, whose turns follow each other closely."""
    speeds = sorted(loop.tokens_per_s)
    peers = [one for one in loops if not one.name.startswith("ours")] or [loop]
    fastest = min(peers, key=lambda peer: statistics.median(peer.seconds_of_turns))
    turns = zip(fastest.seconds_of_turns, loop.seconds_of_turns, strict=True)
    return {
        "name": loop.name,
        "tokens_per_s": round(statistics.median(speeds), 1),
        "of_fastest_peer": round(statistics.median(theirs / own for theirs, own in turns), 3),
        "tokens_per_cpu_s": round(statistics.median(loop.tokens_per_cpu_s), 1),
        "share_outside_model_and_optimizer": round(statistics.median(loop.overheads), 4) if loop.overheads else None,
        "slowest": round(speeds[0], 1),
        "fastest": round(speeds[-1], 1),
        "first_loss": loop.state["loss"],
        "peak_mib": loop.state["peak_mib"],
        "before_training_mib": loop.base_mib,
    }


def show(case: str, result: dict[str, object]) -> None:
    """Prints the rows of a case."""
    rows = result["loops"]
    assert isinstance(rows, list)
    peers = [row["tokens_per_cpu_s"] for row in rows if not row["name"].startswith("ours")]
    best = max(peers, default=float("nan"))
    for row in rows:
        print(
            f"{case:<10} {result['precision']:<9} {row['name']:<16} {row['tokens_per_s']:>10,.0f} tokens/s"
            f"  {row['of_fastest_peer']:5.2f} of the fastest peer,"
            f"  {row['tokens_per_cpu_s'] / best:5.2f} by processor time  {row['peak_mib']:>6,} MiB"
            f"  outside model and optimizer: {row['share_outside_model_and_optimizer']}",
            flush=True,
        )


def main() -> None:
    """Times all and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--precisions", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--loops", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--litgpt-python", type=Path)
    parser.add_argument("--merge", action="store_true", help="keep the other cases of the output file")
    parser.add_argument("--output", type=Path, default=RESULTS / "training.json")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    facts = {"machine": machine(), "threads": options.threads, "rounds": options.rounds} | versions
    results: dict[str, object] = {}
    if options.merge and options.output.is_file():
        results |= json.loads(options.output.read_text())["results"]
    for precision in options.precisions:
        for case in options.cases:
            result = measure(case, precision, options) | {"load_average": os.getloadavg()[0]}
            results[f"{case} {precision}"] = result
            show(case, result)
    options.output.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n")


def machine() -> str:
    """Returns the processor and its instruction set."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


if __name__ == "__main__":
    main()
