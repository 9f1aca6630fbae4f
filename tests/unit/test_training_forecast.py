"""What a run would take, and where the time of its steps goes."""

import gzip
import json
import re
from pathlib import Path

import pytest
import typer.testing

from llm.checkpoint import Run
from llm.cli.main import app
from llm.errors import ConfigError
from llm.models.costs import estimate_memory, num_parameters
from llm.training import Forecast, dry_run
from llm.training.callbacks.profiler import part_lines
from llm.training.launch import launch, resume
from tests.unit.training_samples import config, on_text


@pytest.fixture(scope="module")
def found(corpus_file: Path) -> Forecast:
    return dry_run(on_text(corpus_file, max_steps=100, validate_every=30))


def test_a_forecast_counts_what_the_run_would_take(found: Forecast, corpus_file: Path, tmp_path: Path) -> None:
    model = found.config.model
    assert model.vocab_size == 300
    assert found.num_parameters == num_parameters(model)
    assert (found.total_steps, found.targets, found.unit) == (100, 100 * 8 * 16, "tokens")
    assert found.passes == pytest.approx(100 * 8 / 64)
    assert found.num_validations == 4
    memory = estimate_memory(model, 8, 16)
    assert found.memory.weights == memory.weights
    assert found.memory.optimizer == pytest.approx(memory.optimizer, rel=0.01)
    assert 0 < found.step_s < 10
    assert found.total_s > 100 * found.step_s
    checkpoint = launch(on_text(corpus_file, max_steps=1), tmp_path / "run")
    files = [checkpoint.path / "model.safetensors", checkpoint.training_state / "optimizer.safetensors"]
    assert found.checkpoint_bytes == pytest.approx(sum(file.stat().st_size for file in files), rel=0.1)


def test_a_forecast_reads_as_a_table(found: Forecast) -> None:
    words = dict(re.match(r"(\w+) +(.*)", line).groups() for line in found.lines())
    assert words["steps"] == "100 of 8 samples"
    assert words["tokens"] == "12,800 (12.50 passes over the data)"
    parts = r"\(weights .*, gradients .*, optimizer .*, activations .*\)"
    assert re.fullmatch(rf"about .* {parts}; .* in the first steps", words["memory"])
    assert words["time"].startswith("about ")


def test_a_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus_file: Path) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--data", str(corpus_file), "--out", "run", "--max-steps", "2", "model.hidden_size=16"]
    more = ["model.num_hidden_layers=1", "model.max_position_embeddings=16", "tokenizer.vocab_size=300"]
    done = typer.testing.CliRunner().invoke(app, ["train", "--dry-run", *given, *more])
    assert done.exit_code == 0, done.output
    assert re.search(r"^steps +2 of \d+ samples$", done.output, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_is_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process, got 2"):
        dry_run(config())


def test_profiled_steps_are_written_as_a_trace_and_a_table(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    launch(config(max_steps=4, profile_steps=(2, 3)), run.path)
    with gzip.open(run.path / "profile" / "trace_2-3.json.gz") as trace:
        names = [event.get("name") for event in json.load(trace)["traceEvents"]]
    assert [names.count(name) for name in ("forward", "backward", "optimizer")] == [2, 2, 2]
    table = (run.path / "profile" / "table_2-3.txt").read_text()
    parts = {name: float(ms) for name, ms in re.findall(r"^(.+?) +([\d.]+) ms", table, re.MULTILINE)}
    assert parts["step"] == pytest.approx(sum(value for name, value in parts.items() if name != "step"), abs=0.03)
    assert min(parts.values()) > 0
    assert "aten::mm" in table
    resume(run.path, overrides=["training.max_steps=6", "training.profile_steps=[4, 5]"])
    assert (run.path / "profile" / "table_5-5.txt").is_file()


def test_parts_of_a_step_add_up() -> None:
    assert part_lines(10.0, {"forward": 3.0, "backward": 6.0}) == [
        "step                 10.00 ms  100.0%",
        "forward               3.00 ms   30.0%",
        "backward              6.00 ms   60.0%",
        "everything else       1.00 ms   10.0%",
    ]
