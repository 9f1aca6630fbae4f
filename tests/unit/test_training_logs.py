"""Logs for other programs: CSV, TensorBoard, Weights & Biases. Readers of the makers read what was written."""

import csv
import importlib.util
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm.checkpoint import Run
from llm.errors import ConfigError, MissingExtraError
from llm.settings.merge import load_run_config
from llm.training.callbacks import check_log_targets
from llm.training.callbacks.csv_log import numbers
from llm.training.launch import launch, resume
from tests.unit.training_samples import config, on_text

INSTALLED = [target for target in ("tensorboard", "wandb") if importlib.util.find_spec(target)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> Iterator[Run]:
    """A run that was resumed once, with every log that is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        run = Run(tmp_path_factory.mktemp("runs") / "run")
        launch(on_text(corpus_file, max_steps=4, sample_tokens=8, log_to=("csv", *INSTALLED)), run.path)
        resume(run.path, overrides=["training.max_steps=8"])
        yield run


def test_csv_has_a_row_for_each_line_of_the_log(run: Run) -> None:
    with (run.path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    log = run.read_log()
    assert [int(row["step"]) for row in rows] == [line["step"] for line in log] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    assert float(rows[0]["loss"]) == log[0]["loss"]
    assert (rows[4]["loss"], float(rows[4]["validation_loss"])) == ("", log[4]["validation_loss"])


def test_nested_numbers_have_names_of_their_own() -> None:
    record = {"step": 1, "loss": None, "is_on": True, "source_losses": {"web": 2.0}, "expert_load": [[0.5, 0.25]]}
    assert dict(numbers(record)) == {
        "step": 1,
        "source_losses/web": 2.0,
        "expert_load/0/0": 0.5,
        "expert_load/0/1": 0.25,
    }


def test_tensorboard_reads_curves_and_samples(run: Run) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    log = [line for line in run.read_log() if "loss" in line]
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(1, 9))
    assert [event.value for event in losses] == pytest.approx([line["loss"] for line in log], rel=1e-6)
    assert [event.step for event in events.Scalars("validation/loss")] == [4, 8]
    assert [event.step for event in events.Tensors("sample/text_summary")] == [4, 8]
    assert {"train/tokens_per_s", "train/learning_rate", "validation/bits_per_byte"} <= set(events.Tags()["scalars"])


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of an offline run, which lie in blocks of 32 KiB as in a log of LevelDB, after 7 bytes of its own."""
    parts, position = b"", 7
    while position < len(content):
        left = 32_768 - position % 32_768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole record or its last part
            yield parts
            parts = b""


def test_wandb_keeps_one_run_offline(run: Run) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    files = sorted((run.path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert {file.stem for file in files} == {f"run-{(run.path / 'wandb_id').read_text().strip()}"}
    losses: dict[int, float] = {}
    for file in files:
        for data in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if "train/loss" in items:
                losses[int(items["step"])] = float(items["train/loss"])
    assert losses == {line["step"]: pytest.approx(line["loss"]) for line in run.read_log() if "loss" in line}


def test_a_package_that_is_missing_is_named_before_the_run_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'llm-oxide\[wandb\]'"):
        launch(config(log_to=("wandb",)), tmp_path / "run")
    assert not Run(tmp_path / "run").exists
    check_log_targets(("csv",))


def test_logs_may_be_named_in_one_word() -> None:
    assert load_run_config(overrides=["training.log_to=csv"]).training.log_to == ("csv",)
    assert load_run_config(overrides=["training.log_to=csv, wandb"]).training.log_to == ("csv", "wandb")
    with pytest.raises(ConfigError, match=r"training\.log_to"):
        load_run_config(overrides=["training.log_to=mlflow"])
    assert load_run_config(overrides=["report_to=tensorboard"]).training.log_to == ("tensorboard",)
    with pytest.raises(ConfigError, match=r"`training\.log_to=…`"):
        load_run_config(overrides=["wandb=True"])
