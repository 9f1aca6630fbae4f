"""Two processes train as one."""

import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import msgspec
import pytest
import torch.distributed as dist
from torch import nn
from typer.testing import CliRunner

from llm.checkpoint import Run
from llm.cli.main import app
from llm.cli.processes import start_processes
from llm.errors import ConfigError, TrainingError
from llm.settings.model import ExpertsConfig
from llm.training.distributed import Distributed
from llm.training.launch import launch
from tests.unit.processes import in_processes
from tests.unit.training_samples import check_same_training, unclipped

# Takes 10 to 50 seconds; `make check` leaves it out.
pytestmark = pytest.mark.long


def test_two_processes_keep_loss_and_weights(tmp_path: Path) -> None:
    settings = unclipped()
    launch(settings, tmp_path / "1")
    in_processes(2, launch, settings, tmp_path / "2")
    check_same_training(tmp_path / "1", tmp_path / "2")
    one, two = (Run(tmp_path / name) for name in ("1", "2"))
    validation = [[line for line in run.read_log() if "validation_loss" in line][-1] for run in (one, two)]
    assert validation[0]["validation_loss"] == pytest.approx(validation[1]["validation_loss"], rel=1e-4)


def test_a_signal_to_one_of_two_processes_stops_both_with_a_checkpoint(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.unit.training_samples import MODEL, config\n"
        "from llm.training import LanguageModelingTask\n"
        "from llm.training.launch import launch\n"
        "real = LanguageModelingTask.loss_sum\n"
        "calls = 0\n"
        "def loss_sum(self, model, batch):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls == 3 and os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return real(self, model, batch)\n"
        "LanguageModelingTask.loss_sum = loss_sum\n"
        "try:\n"
        "    launch(config(max_steps=500), sys.argv[2], callbacks=[])\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', os.environ['RANK'])\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, str(script), str(Path(__file__).parents[2]), str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("interrupted") == 2
    assert Run(tmp_path / "run").newest().path.name == "step_00000003"


def test_nproc_trains_in_as_many_processes(tmp_path: Path) -> None:
    tiny = ["data.kind=synthetic", "model.hidden_size=32", "model.intermediate_size=64", "model.num_hidden_layers=1"]
    tiny += ["model.num_attention_heads=2", "model.max_position_embeddings=16", "--max-steps", "3", "--device", "cpu"]
    assert CliRunner().invoke(app, ["train", "--out", str(tmp_path / "one"), *tiny]).exit_code == 0
    command = [sys.executable, "-m", "llm", "train", "--nproc", "2", "--out", str(tmp_path / "two"), *tiny]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False), refused.stderr[-2000:]
    assert f"error: {tmp_path / 'two'} already holds a run\nhint: " in refused.stderr
    one, two = (Run(tmp_path / name) for name in ("one", "two"))
    assert (one.last_facts()["world_size"], two.last_facts()["world_size"]) == (1, 2)
    losses = [[line["loss"] for line in run.read_log() if "loss" in line] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_nproc_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ConfigError, match="leave it out under torchrun"):
        start_processes("train", 2, ["train", "--nproc", "2"])


def test_experts_are_balanced_over_all_processes(tmp_path: Path) -> None:
    experts = ExpertsConfig(num_experts=4, moe_intermediate_size=24, load_balancing_weight=1.0, router_z_weight=0.1)
    settings = unclipped(device="cpu", max_steps=4)
    settings = msgspec.structs.replace(
        settings, model=msgspec.structs.replace(settings.model, mlp="moe", experts=experts)
    )
    launch(settings, tmp_path / "1")
    in_processes(2, launch, settings, tmp_path / "2")
    check_same_training(tmp_path / "1", tmp_path / "2")
    one, two = ([line for line in Run(tmp_path / name).read_log() if "loss" in line] for name in ("1", "2"))
    for key in ("load_balancing", "router_z"):
        assert [line[key] for line in one] == pytest.approx([line[key] for line in two], rel=1e-5)
    assert [line["expert_load"] for line in one] == [line["expert_load"] for line in two]


def wait_for_a_process_that_hangs() -> None:
    distributed = Distributed.start("cpu", timeout_s=1)
    never = threading.Event()
    distributed.main_first(lambda: never.wait(2))
    assert distributed.sum(1.0) == [2.0]
    if distributed.rank == 1:
        never.wait(3)
        return
    with pytest.raises(TrainingError, match=r"rank 0 can't reach .*\n.*raise `training.process_timeout_s`"):
        distributed.sum(1.0)


def test_processes_wait_long_for_the_text_and_not_for_one_that_hangs() -> None:
    in_processes(2, wait_for_a_process_that_hangs)


def leave_before_ddp_is_freed() -> None:
    distributed = Distributed.start("cpu")
    model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    group = weakref.ref(dist.group.WORLD)
    distributed.stop()
    assert not dist.is_initialized()
    del model
    gc.collect()
    assert group() is not None


def test_the_group_outlives_ddp_which_would_free_it_with_the_lock_held() -> None:
    in_processes(2, leave_before_ddp_is_freed)
