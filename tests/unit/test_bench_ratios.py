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
    assert [line.rsplit(maxsplit=2)[0].strip() for line in lines[2 : len(names) + 2]] == list(names), done.stderr
    assert done.returncode == ("error: got worse" in done.stdout)


def test_a_ratio_may_fall_by_15_percent_and_on_another_processor_to_half_of_the_lowest() -> None:
    stored = {"one": {"encode": 4.0, "decode": 2.0}, "other": {"encode": 3.0}}
    assert ratios.least(stored, "one", "encode") == pytest.approx(3.4)
    assert ratios.least(stored, "new", "encode") == 1.5
    assert ratios.least(stored, "other", "decode") == 1.0
    assert ratios.least(stored, "one", "unheard of") == 0
