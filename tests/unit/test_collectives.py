"""Operations over ranks end once a rank is known to be lost, also those that gloo would let wait."""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from llm.inference.parallel import group
from llm.models.layers import collectives

# Rank 1 joins, takes part once, and then lives on without another operation.
RANK_1 = """
import sys, time, torch
from llm.inference.parallel import group
from llm.models.layers import collectives
group.join(sys.argv[1], 1, 2, torch.device("cpu"))
values = torch.full((3,), 2.0)
collectives.all_reduce(values)
collectives.gather(values + 1)
time.sleep(600)
"""
# Rank 0 gives up on an operation that waits for rank 1, and ends.
RANK_0 = """
import sys, threading, torch
from llm.inference.parallel import group
from llm.models.layers import collectives
group.join(sys.argv[1], 0, 2, torch.device("cpu"))
values, parts = torch.full((3,), 1.0), [torch.empty(3), torch.empty(3)]
collectives.all_reduce(values)
collectives.gather(values, parts)
print(values.tolist(), [part.tolist() for part in parts], flush=True)
threading.Timer(0.2, group.abort).start()
try:
    collectives.all_reduce(values)
except RuntimeError as error:
    print(error, flush=True)
group.leave()
group.join(sys.argv[1] + "-again", 0, 1, torch.device("cpu"))
collectives.all_reduce(values)
group.leave()
print("left", flush=True)
"""
TIME_LIMIT_S = 60.0  # half of what an operation may take


def test_an_operation_that_waits_is_given_up_and_so_is_its_group(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for script in (RANK_0, RANK_1)
    ]
    began = time.monotonic()
    try:
        said = ranks[0].communicate(timeout=TIME_LIMIT_S)[0].splitlines()
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert said == ["[3.0, 3.0, 3.0] [[3.0, 3.0, 3.0], [4.0, 4.0, 4.0]]", "a rank of the model has ended", "left"]
    assert ranks[0].returncode == 0
    assert time.monotonic() - began < TIME_LIMIT_S


def test_operations_begin_again_in_a_new_group(tmp_path: Path) -> None:
    for number in range(2):
        group.join(tmp_path / str(number), 0, 1, torch.device("cpu"))
        try:
            values = torch.ones(2)
            collectives.all_reduce(values)
            assert not collectives.has_given_up()
            group.abort()
            assert collectives.has_given_up()
        finally:
            group.leave()
