"""Measures the lines of the Rust core that its tests run: `make coverage-rust`.

    python -m tools.rust_coverage [--only rust|python|report] [arguments of pytest]

Runs the tests in Rust, then those in Python with an instrumented extension in a copy of the package, and adds both up.
Code of tests is not counted, and neither are kernels for an instruction set that this machine lacks.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "rust/src"
FOLDER = ROOT / ".cache/coverage/rust"
LEAST = 90.0
# The flag of /proc/cpuinfo that a file needs before any of its kernels can run.
NEEDS = {
    "kernels/product/tiles.rs": "amx_bf16",
    "kernels/product/bf16_pairs.rs": "avx512_bf16",
    "kernels/product/packed/vnni.rs": "avx512_vnni",
    "kernels/phases/kv_vnni.rs": "avx512_vnni",
    "tokenizer/merge/avx512.rs": "avx512vl",
    "tokenizer/merge/avx512_batch.rs": "avx512vbmi",
}
PYTHON_TESTS = ["-m", "not long", "tests/unit"]

Lines = dict[int, bool]


def read_lcov(text: str, sources: Path = SOURCES) -> dict[str, Lines]:
    """Returns for each file of the core whether each of its lines that hold code was run."""
    found: dict[str, Lines] = defaultdict(dict)
    lines: Lines | None = None
    for record in text.splitlines():
        kind, _, value = record.partition(":")
        if kind == "SF":
            path = Path(value)
            lines = found[str(path.relative_to(sources))] if path.is_relative_to(sources) else None
        elif kind == "DA" and lines is not None:
            line, count, *_ = map(int, value.split(","))
            lines[line] = lines.get(line, False) or count > 0
    return dict(found)


def first_test_line(source: str) -> int:
    """Returns the number of the line with which the tests at a file's foot begin, or one past the file."""
    before = re.split(r"^#\[cfg\(test\)\]\nmod \w+ \{", source, maxsplit=1, flags=re.MULTILINE)[0]
    return before.count("\n") + 1


def without_tests(files: Mapping[str, Lines], sources: Path = SOURCES) -> dict[str, Lines]:
    """Returns the lines outside of tests."""
    kept = {}
    for name, lines in files.items():
        if name.endswith("tests.rs"):
            continue
        end = first_test_line((sources / name).read_text(encoding="utf-8") + "\n")
        kept[name] = {line: was_run for line, was_run in lines.items() if line < end}
    return kept


def report(files: Mapping[str, Lines], flags: Iterable[str]) -> tuple[str, float]:
    """Returns the table of parts and of the files below 90 %, and the share of all lines that were run, in percent."""
    left_out = {name: flag for name, flag in NEEDS.items() if name in files and flag not in flags}
    counted = {name: lines for name, lines in files.items() if name not in left_out}
    parts: dict[str, list[bool]] = defaultdict(list)
    for name, lines in counted.items():
        parts[name.partition("/")[0] if "/" in name else "(others)"] += lines.values()
    whole = [was_run for runs in parts.values() for was_run in runs]
    rows = [_row(name, parts[name]) for name in sorted(parts)] + [_row("in all", whole), ""]
    rows += [f"left out: {name}, which needs {flag}" for name, flag in left_out.items()]
    low = sorted((_share(lines.values()), name) for name, lines in counted.items() if lines)
    rows += [f"{share:5.1f} %  {name}: {_missing(counted[name])}" for share, name in low if share < LEAST]
    return "\n".join(rows), _share(whole)


def _share(runs: Iterable[bool]) -> float:
    runs = list(runs)
    return 100.0 * sum(runs) / len(runs)


def _row(name: str, runs: list[bool]) -> str:
    return f"{name:<12} {sum(runs):>7,} of {len(runs):>7,} lines  {_share(runs):5.1f} %"


def _missing(lines: Lines) -> str:
    """Returns the numbers of lines that were not run, as ranges that skip lines without code."""
    ranges: list[list[int]] = []
    for line in sorted(lines):
        if lines[line]:
            ranges.append([])
        elif ranges and ranges[-1]:
            ranges[-1][1:] = [line]
        else:
            ranges.append([line])
    return ", ".join("-".join(map(str, ends)) for ends in ranges if ends)


def _environment() -> Iterator[tuple[str, str]]:
    """Yields the variables under which cargo builds instrumented code and the code writes its counts."""
    yield from os.environ.items()
    command = ["cargo", "llvm-cov", "show-env", "--sh"]
    shown = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    for word in shlex.split(shown):
        name, found, value = word.partition("=")
        if found:
            yield name, value
    # Kernels without any optimization make the tests in Python take hours.
    yield from {"CARGO_PROFILE_DEV_OPT_LEVEL": "1", "CARGO_PROFILE_DEV_DEBUG": "line-tables-only"}.items()


def _run(environment: Mapping[str, str], *command: str) -> None:
    print("»", *command, flush=True)
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def _test_in_python(environment: Mapping[str, str], arguments: list[str]) -> None:
    _run(environment, "cargo", "build", "--quiet", "--lib", "--features", "python")
    package = FOLDER / "python/llm"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "python/llm", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    built = Path(environment["CARGO_LLVM_COV_TARGET_DIR"]) / "debug/libllm_core.so"
    shutil.copy(built, package / "_rust.abi3.so")
    path = {"PYTHONPATH": f"{package.parent}{os.pathsep}{ROOT}"}
    _run({**environment, **path}, sys.executable, "-m", "pytest", "-q", *(arguments or PYTHON_TESTS))


def _flags() -> list[str]:
    cpu = re.search(r"^flags\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return cpu[1].split() if cpu else []


def main(arguments: list[str] | None = None) -> int:
    """Runs the tests and prints the report; returns the exit code."""
    parser = argparse.ArgumentParser(description="Measure the lines of the Rust core that its tests run.")
    parser.add_argument("--only", choices=["rust", "python", "report"], help="do one step, and keep the earlier counts")
    options, pytest_arguments = parser.parse_known_args(arguments)
    steps = [options.only] if options.only else ["rust", "python", "report"]
    FOLDER.mkdir(parents=True, exist_ok=True)
    environment = dict(_environment())
    if not options.only:
        _run(environment, "cargo", "llvm-cov", "clean", "--profraw-only")
    if "rust" in steps:
        _run(environment, "cargo", "test", "--quiet", "--lib", "--test", "core")
    if "python" in steps:
        _test_in_python(environment, pytest_arguments)
    if "report" not in steps:
        return 0
    lcov = FOLDER / "lines.lcov"
    _run(environment, "cargo", "llvm-cov", "report", "--lcov", "--output-path", str(lcov))
    table, share = report(without_tests(read_lcov(lcov.read_text(encoding="utf-8"))), _flags())
    print(table)
    if share < LEAST:
        print(f"error: {share:.1f} % of the lines were run, at least {LEAST:.0f} % are asked for")
    return int(share < LEAST)


if __name__ == "__main__":
    sys.exit(main())
