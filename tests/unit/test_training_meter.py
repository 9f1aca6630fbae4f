"""What a run says of itself: targets, time, speed, use of the device."""

import io
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console

from llm.checkpoint import Run
from llm.models.costs import flops_per_token
from llm.training import JsonlLogger, ProgressBar, StepMetrics
from llm.training.callbacks.progress import figures
from llm.training.launch import launch, resume
from llm.training.meter import Meter, elapsed_at
from llm.training.metrics import without_machine
from llm.training.utilization import cuda_peak, memory_bytes, peak_flops
from tests.unit.training_samples import config, on_text

TARGETS = 8 * 16  # a step of `config`


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> tuple[Run, Sequence[str]]:
    """A run on text that stopped at step 6 and was resumed to step 8, and what it printed."""
    run = Run(tmp_path_factory.mktemp("runs") / "run")
    output = io.StringIO()
    callbacks = [JsonlLogger(run), ProgressBar(Console(file=output, width=80))]
    launch(on_text(corpus_file, max_steps=6), run.path, callbacks=callbacks)
    resume(run.path, overrides=["training.max_steps=8"], callbacks=callbacks)
    return run, output.getvalue().splitlines()


def test_tokens_and_time_go_on_in_a_resumed_run(lines: tuple[Run, Sequence[str]]) -> None:
    log = [line for line in lines[0].read_log() if "loss" in line]
    assert [line["tokens"] for line in log] == [TARGETS * step for step in range(1, 9)]
    times = [line["elapsed_s"] for line in log]
    assert times == sorted(times)
    assert times[0] > 0
    assert elapsed_at(lines[0], 6) == times[5]
    assert times[6] > times[5]
    assert all(0 < line["mfu"] <= 1 for line in log)


def test_a_validation_has_the_tokens_and_time_of_its_step(lines: tuple[Run, Sequence[str]]) -> None:
    log = lines[0].read_log()
    at_step = {line["step"]: line for line in log if "loss" in line}
    validations = [line for line in log if "validation_loss" in line]
    assert [line["step"] for line in validations] == [4, 6, 8]
    for line in validations:
        assert (line["tokens"], line["elapsed_s"]) == tuple(
            at_step[line["step"]][key] for key in ("tokens", "elapsed_s")
        )


def test_plain_lines_show_loss_bits_speed_norm_memory_and_time_left(lines: tuple[Run, Sequence[str]]) -> None:
    third = next(line for line in lines[1] if line.startswith("step 3/6"))
    for word in ("loss ", " bits/byte", " tokens/s", "MFU ", "grad ", " GiB", "0:00:00 left"):
        assert word in third


def test_what_depends_on_the_machine_can_be_told_from_the_rest() -> None:
    record = StepMetrics(3, 1.5, 0.1, 2.0, 100.0, targets=30, elapsed_s=2.0, mfu=0.5, memory_bytes=7).record("tokens")
    assert record["tokens_per_s"] == 100.0
    assert without_machine(record) == {
        "step": 3,
        "loss": 1.5,
        "learning_rate": 0.1,
        "grad_norm": 2.0,
        "skipped_steps": 0,
        "tokens": 30,
    }


def test_the_smoothed_loss_is_a_mean_at_first_and_continues_from_its_state() -> None:
    meter = Meter(100, torch.device("cpu"), None, None)
    losses = [4.0, 2.0, 3.0]
    smoothed = [
        meter.measured(StepMetrics(step, loss, 0, 0), 10, 0).smoothed_loss for step, loss in enumerate(losses, 1)
    ]
    assert smoothed == pytest.approx([4.0, 3.0, 3.0])
    other = Meter(100, torch.device("cpu"), None, None)
    other.restore(meter.state(), 12.0)
    late = StepMetrics(40, 5.0, 0, 0)
    measured = other.measured(late, 10, 0)
    assert measured.smoothed_loss == meter.measured(late, 10, 0).smoothed_loss == pytest.approx(3.1)
    assert measured.targets == 40
    assert measured.elapsed_s > 12.0


def test_use_of_the_device_is_the_models_operations_over_the_peak() -> None:
    flops = flops_per_token(config().model, 16)
    meter = Meter(2, torch.device("cpu"), flops, 1e18)
    metrics = meter.measured(StepMetrics(1, 4.0, 0, 0.5), 1000, 3000)
    assert metrics.mfu == pytest.approx(metrics.targets_per_s * flops / 1e18)
    assert metrics.bits_per_byte == pytest.approx(4.0 / 0.6931471805599453 / 3)
    assert figures(metrics, "tokens").startswith("loss 4.0000  1.924 bits/byte  ")


def test_use_is_never_above_a_peak_that_was_measured_on_a_busy_machine() -> None:
    meter = Meter(2, torch.device("cpu"), flops_per_token(config().model, 16), 1.0)
    assert meter.measured(StepMetrics(1, 4.0, 0, 0.5), 1000, 3000).mfu == 1.0
    time.sleep(0.2)  # the speed falls below the one that is the peak now
    assert 0 < (meter.measured(StepMetrics(2, 4.0, 0, 0.5), 1, 3).mfu or 0) < 1


def test_peaks_of_gpus_go_by_name_and_a_cpus_is_measured() -> None:
    assert cuda_peak("NVIDIA H100 80GB HBM3", torch.bfloat16) == 989e12
    assert cuda_peak("NVIDIA L40S", torch.float32) == 91.6e12
    assert cuda_peak("Unheard Of 9000", torch.bfloat16) is None
    assert 1e8 < (peak_flops(torch.device("cpu"), torch.float32) or 0) < 1e14
    assert (memory_bytes(torch.device("cpu")) or 2**30) > 2**20
