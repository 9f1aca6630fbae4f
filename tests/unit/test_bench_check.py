"""The comparison of instruction counts with the stored baseline."""

import json
import subprocess
import sys

import pytest
from tools import bench_check

STORED = json.loads(bench_check.BASELINE.read_text(encoding="utf-8"))
COUNTS = STORED["instructions"]


def test_the_stored_baseline_names_where_it_is_from_and_counts_work() -> None:
    assert {"machine", "rustc", "valgrind", "instruction_set"} < STORED.keys()
    assert len(COUNTS) == 11
    assert min(COUNTS.values()) > 10_000
    # The wider vectors do the same work in fewer instructions.
    assert COUNTS["attention AVX2"] < COUNTS["attention portable"]


@pytest.mark.parametrize("name", COUNTS)
def test_a_workload_that_got_worse_by_more_than_15_percent_is_named(name: str) -> None:
    table, worse = bench_check.compare(COUNTS, COUNTS | {name: round(COUNTS[name] * 1.16)})
    assert worse == [name]
    [marked] = [line for line in table.splitlines() if line.endswith("WORSE")]
    assert marked.startswith(name)
    assert "+16.0%" in marked


def test_less_is_no_failure_and_neither_is_what_one_side_lacks() -> None:
    changed = {
        name: round(count * factor) for (name, count), factor in zip(COUNTS.items(), (0.5, 1, 1.14), strict=False)
    }
    table, worse = bench_check.compare(COUNTS, changed | {"brand new": 7})
    assert worse == []
    assert "not in the baseline" in table
    assert table.count("not counted on this machine") == len(COUNTS) - 3


def test_without_valgrind_it_says_so_and_passes() -> None:
    command = [sys.executable, "-m", "tools.bench_check"]
    done = subprocess.run(command, cwd=bench_check.ROOT, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "skipped: valgrind is not installed, so no instruction was counted\n")
