"""The comparison of speeds beside other libraries with stored ratios."""

import json
import os
import subprocess
import sys

import pytest
from tools import bench_ratios as ratios
from tools.bench_check import BASELINE, ROOT

STORED = json.loads(BASELINE.read_text(encoding="utf-8"))["ratios"]


def test_every_stored_ratio_is_of_a_named_processor_and_ours_is_ahead() -> None:
    for machine, found in STORED.items():
        assert ", " in machine
        assert len(found) == 4
        assert min(found.values()) > 1


@pytest.mark.timeout(300)
def test_it_measures_each_workload_beside_the_stored_ratio() -> None:
    command = [sys.executable, "-m", "tools.bench_ratios", "--rounds", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    names = next(iter(STORED.values()))
    assert [line.rsplit(maxsplit=2)[0].strip() for line in lines[1 : len(names) + 1]] == list(names), done.stderr
    assert done.returncode == ("error: more than 15 % worse" in done.stdout)


def test_a_ratio_is_worse_below_its_own_or_else_the_lowest_stored_one() -> None:
    stored = {"one": {"encode": 4.0, "decode": 2.0}, "other": {"encode": 3.0}}
    assert ratios.expected(stored, "one", "encode") == 4.0
    assert ratios.expected(stored, "new", "encode") == 3.0
    assert ratios.expected(stored, "one", "unheard of") is None
    assert not ratios.is_worse(4.0, 3.5)
    assert ratios.is_worse(4.0, 3.4)
    assert not ratios.is_worse(None, 0.1)
