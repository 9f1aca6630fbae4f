"""Compares instruction counts of the core's workloads with a stored baseline: `make bench-check`.

    python -m tools.bench_check [--binary FILE] [--update]

`benches/instructions.rs` does work of known size under valgrind, whose count of instructions is the same in every run,
on a busy machine too. Valgrind has no AVX-512, so kernels run on the instruction sets below it. A workload that takes
over 15 % more instructions than in the baseline is a failure.
"""

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASELINE = ROOT / "benches/results/baseline.json"
MOST_WORSE = 1.15
_FEW, _MORE = 2, 12  # the difference leaves out start and preparation
_COUNT = re.compile(r"Collected : (\d+)")


def compare(baseline: Mapping[str, int], measured: Mapping[str, int]) -> tuple[str, list[str]]:
    """Returns a table of the workloads, and the names of those that got more than 15 % worse.

    A workload that only one side has is in the table, and no failure: this machine may lack its instruction set.
    """
    lines, worse = [f"{'workload':<24} {'baseline':>14} {'now':>14}   change"], []
    for name in dict.fromkeys([*baseline, *measured]):
        before, now = baseline.get(name), measured.get(name)
        if before is None or now is None:
            verdict = "not in the baseline; hint: --update" if before is None else "not counted on this machine"
        else:
            verdict = f"{now / before - 1:+8.1%}"
            if now > MOST_WORSE * before:
                worse.append(name)
                verdict += "  WORSE"
        lines.append(f"{name:<24} {_shown(before):>14} {_shown(now):>14} {verdict}")
    return "\n".join(lines), worse


def _shown(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def measure(binary: Path) -> dict[str, int]:
    """Returns the instructions of each workload, done once."""
    names = _output([str(binary)]).splitlines()
    return {name: (_count(binary, name, _MORE) - _count(binary, name, _FEW)) // (_MORE - _FEW) for name in names}


def _count(binary: Path, name: str, times: int) -> int:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(binary), name, str(times)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = _COUNT.search(done.stderr)
    if done.returncode or found is None:
        raise SystemExit(f"error: {' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return int(found[1])


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _built() -> Path:
    command = ["cargo", "bench", "--no-run", "--bench", "instructions", "--message-format=json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    messages = (json.loads(line) for line in done.stdout.splitlines())
    return Path(next(path for message in messages if (path := message.get("executable"))))


def processor() -> str:
    """Returns the name of the processor."""
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return cpu[1] if cpu else "unknown processor"


def _facts(binary: Path) -> dict[str, str]:
    seen = _output(["valgrind", "--tool=none", "--quiet", str(binary), "instruction-set"])
    return {
        "machine": f"{platform.system()} {platform.machine()}, {processor()}",
        "rustc": _output(["rustc", "--version"]),
        "valgrind": _output(["valgrind", "--version"]),
        "instruction_set": seen,
    }


def main(arguments: list[str] | None = None) -> int:
    """Counts, compares or stores; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compare instruction counts with the stored baseline.")
    parser.add_argument("--binary", type=Path, help="built benchmark `instructions` (default: builds it)")
    parser.add_argument("--update", action="store_true", help="store the counts as the new baseline")
    options = parser.parse_args(arguments)
    if shutil.which("valgrind") is None:
        print("skipped: valgrind is not installed, so no instruction was counted")
        return 0
    binary = (options.binary or _built()).resolve()
    facts, measured = _facts(binary), measure(binary)
    stored = json.loads(BASELINE.read_text(encoding="utf-8")) if BASELINE.exists() else {"instructions": {}}
    table, worse = compare(stored["instructions"], measured)
    print(f"instructions a call, on valgrind's {facts['instruction_set']}, {facts['rustc']}\n{table}")
    if options.update:
        BASELINE.write_text(json.dumps(stored | facts | {"instructions": measured}, indent=1) + "\n", encoding="utf-8")
        return 0
    if stored.get("rustc") != facts["rustc"]:
        print(f"note: the baseline is of {stored.get('rustc')}")
    if worse:
        print(f"error: more than 15 % worse: {', '.join(worse)}\nhint: --update stores what is meant to stay")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
