"""Fine-tuning of SmolLM2-135M on 500 made dialogues beside TRL and PEFT, on a CPU: tokens a second and peak memory.

`python benches/bench_tuning.py [--rounds 5] [--threads 2] [--batch 8]` lets the loops of a group take turns, step by
step, from the same weights on the same dialogues. TRL doesn't pack on a CPU, so a batch is padded to its longest row
there: speeds are given over all tokens that a model computes, and over those that are no padding. It prints a table and
writes `benches/results/tuning.json`. TRL runs in an environment of its own, made by
`python benches/peers/environments.py trl`, or under `--trl-python`; without it, TRL is left out.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench_training import machine
from peers.environments import python_of

from llm.checkpoint import resolve, write_model

ROOT = Path(__file__).parents[1]
MODEL = ROOT / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
LOOPS = ROOT / "benches" / "peers" / "tuning_loops.py"
# Loops that take turns, and share the memory at one time.
GROUPS = (
    ("ours-packed", "ours-unpacked", "trl-unpacked"),
    ("ours-unpacked", "ours-lora", "trl-lora"),
    ("ours-unpacked", "ours-dpo"),
    ("ours-lora", "ours-qlora"),
)
WARM_UP_STEPS = 2


class Loop:
    """A contender in a process of its own."""

    def __init__(self, name: str, directory: Path, python: Path, threads: int) -> None:
        self.name, self.errors = name, directory / f"{name}.log"
        self.seconds: list[float] = []
        self.positions: list[int] = []
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        with self.errors.open("w") as file:
            self.process = subprocess.Popen(
                [str(python), str(LOOPS), name, str(directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=environment,
            )
        self.useful_tokens = float(self._read()["useful_tokens"])
        self.peak_mib = 0

    def step(self, is_timed: bool = True) -> None:
        """Lets the loop take a step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        state = self._read()
        self.peak_mib = state["peak_mib"]
        if is_timed:
            self.seconds.append(state["seconds"])
            self.positions.append(state["positions"])

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"seconds"'):
                return dict(json.loads(line))
        raise SystemExit(f"{self.name} ended:\n{self.errors.read_text()[-3000:]}")

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()

    def report(self) -> dict[str, Any]:
        """Returns the figures; speeds are over all steps, whose batches have unequal lengths."""
        total = sum(self.seconds)
        return {
            "name": self.name,
            "step_s": round(statistics.median(self.seconds), 4),
            "slowest_s": round(max(self.seconds), 4),
            "fastest_s": round(min(self.seconds), 4),
            "tokens_per_s": round(sum(self.positions) / total, 1),
            "useful_tokens_per_s": round(self.useful_tokens * len(self.seconds) / total, 1),
            "peak_mib": self.peak_mib,
        }


def prepare(directory: Path, options: argparse.Namespace) -> None:
    """Writes the model as a Hugging Face directory, the dialogues, and pairs of their answers."""
    checkpoint = resolve(MODEL)
    (directory / "model").mkdir()
    write_model(directory / "model", checkpoint.model("float32"), checkpoint.tokenizer())
    spec = importlib.util.spec_from_file_location("make_dialogues", ROOT / "examples" / "make_dialogues.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rows = script.dialogues()
    pairs = [
        {"prompt": row["messages"][0]["content"], "chosen": row["messages"][1]["content"],
         "rejected": other["messages"][1]["content"]}
        for row, other in zip(rows, rows[7:] + rows[:7], strict=True)
        if row["messages"][1] != other["messages"][1]
    ]  # fmt: skip
    for name, lines in (("rows", rows), ("pairs", pairs)):
        (directory / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    facts = {"batch": options.batch, "length": options.length, "precision": options.precision}
    (directory / "case.json").write_text(
        json.dumps(facts | {"threads": options.threads, "quantised": str(MODEL.resolve())})
    )


@contextlib.contextmanager
def running(names: tuple[str, ...], directory: Path, options: argparse.Namespace) -> Iterator[list[Loop]]:
    """Starts the loops of a group one after the other, each in a folder of its own."""
    with contextlib.ExitStack() as stack:
        loops = []
        for name in names:
            python = options.trl_python or python_of("trl") if name.startswith("trl") else Path(sys.executable)
            if python is not None:
                own = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                for file in directory.iterdir():
                    (own / file.name).symlink_to(file)
                loops.append(Loop(name, own, python, options.threads))
                stack.callback(loops[-1].close)
        yield loops


def measure(names: tuple[str, ...], directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of a group, whose loops take turns in an order that turns."""
    with running(names, directory, options) as loops:
        for loop in loops:
            for _ in range(WARM_UP_STEPS):
                loop.step(is_timed=False)
        for turn in range(options.rounds):
            for at in range(len(loops)):
                loops[(at + turn) % len(loops)].step()
        found = {loop.name: loop.report() for loop in loops}
    for row in found.values():
        print(
            f"{row['name']:<14} {1e3 * row['step_s']:>7,.0f} ms a step  {row['tokens_per_s']:>7,.1f} tokens/s  "
            f"{row['useful_tokens_per_s']:>7,.1f} without padding  {row['peak_mib']:>6,} MiB",
            flush=True,
        )
    return {"loops": list(found.values()), "ratios": ratios(found), "load_average": os.getloadavg()[0]}


def ratios(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Returns what is promised about the loops of a group."""
    wanted = {
        "unpacked: tokens/s over TRL's": ("ours-unpacked", "trl-unpacked", "tokens_per_s"),
        "unpacked: tokens/s without padding over TRL's": ("ours-unpacked", "trl-unpacked", "useful_tokens_per_s"),
        "packed: tokens/s without padding over TRL's": ("ours-packed", "trl-unpacked", "useful_tokens_per_s"),
        "peak memory over TRL's": ("ours-unpacked", "trl-unpacked", "peak_mib"),
        "adapters: a step over one of all weights": ("ours-lora", "ours-unpacked", "step_s"),
        "adapters: tokens/s without padding over PEFT's": ("ours-lora", "trl-lora", "useful_tokens_per_s"),
        "adapters: peak memory over PEFT's": ("ours-lora", "trl-lora", "peak_mib"),
        "quantised base: peak memory over that of adapters": ("ours-qlora", "ours-lora", "peak_mib"),
        # A step reads as many sequences as one of fine-tuning does, which is two steps of half the batch.
        "DPO: a step over fine-tuning on its sequences": ("ours-dpo", "ours-unpacked", "step_s"),
    }
    both = {name: each for name, each in wanted.items() if {each[0], each[1]} <= found.keys()}
    result = {name: round(found[one][key] / found[other][key], 3) for name, (one, other, key) in both.items()}
    for name, value in result.items():
        print(f"  {name}: {value}", flush=True)
    return result


def main() -> None:
    """Times all groups and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", nargs="*", type=int, default=list(range(len(GROUPS))))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="rows of a step; packed: samples of --length tokens")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--trl-python", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "benches" / "results" / "tuning.json")
    options = parser.parse_args()
    facts = {"machine": machine(), "torch": torch.__version__, "precision": options.precision}
    facts |= {"threads": options.threads, "rounds": options.rounds, "batch": options.batch, "length": options.length}
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch), options)
        groups = [measure(GROUPS[number], Path(scratch), options) for number in options.groups]
    options.output.write_text(json.dumps(facts | {"groups": groups}, indent=1) + "\n")


if __name__ == "__main__":
    main()
