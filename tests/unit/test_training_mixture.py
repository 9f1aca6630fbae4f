"""A run on several sources: loss by source, weights that change on resume, the numbers of all samples."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm.checkpoint import Run
from llm.errors import ConfigError
from llm.settings.run import DataConfig, RunConfig
from llm.settings.sources import SourceConfig
from llm.training.launch import launch, resume
from tests.unit.training_samples import on_text, weights_of


def on_sources(tmp_path: Path, **training: Any) -> RunConfig:
    """A tiny run on two packed sources."""
    texts = {"plays": "To be, or not to be.\n" * 400, "numbers": "1 2 3 4 5 6 7 8 9\n" * 400}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text("<|endoftext|>".join(text[at : at + 90] for at in range(0, 7000, 90)))
    sources = tuple(SourceConfig(paths=(str(tmp_path / f"{name}.txt"),)) for name in texts)
    data = DataConfig(sources=sources, packing=True, log_samples=True)
    return msgspec.structs.replace(on_text(tmp_path, **training), data=data)


def samples_of(run: Path) -> dict[int, list[int]]:
    lines = [json.loads(line) for line in (Run(run).data / "samples.rank0.jsonl").read_text().splitlines()]
    return {line["position"]: line["ids"] for line in lines}


def test_a_mixture_resumes_to_the_byte_and_logs_each_sources_loss(tmp_path: Path) -> None:
    settings = on_sources(tmp_path, max_steps=8)
    straight = launch(settings, tmp_path / "straight")
    weights, ids = weights_of(straight), samples_of(tmp_path / "straight")
    assert sorted(ids) == list(range(0, 64, 8))
    again = resume(tmp_path / "straight", from_step=4)
    assert weights_of(again) == weights
    assert samples_of(tmp_path / "straight") == ids
    lines = [line for line in Run(tmp_path / "straight").read_log() if "loss/plays" in line]
    assert len(lines) == 8
    for line in lines:
        low, high = sorted((line["loss/plays"], line["loss/numbers"]))
        assert low <= line["loss"] <= high
    validated = [line for line in Run(tmp_path / "straight").read_log() if "validation_loss" in line]
    assert [line["step"] for line in validated] == [4, 8]
    for line in validated:
        low, high = sorted((line["validation_loss/plays"], line["validation_loss/numbers"]))
        assert low < line["validation_loss"] < high
    page = Run(tmp_path / "straight").report_file.read_text()
    assert "Loss by source" in page
    assert "Validation loss by source" in page
    changed = resume(
        tmp_path / "straight",
        overrides=[("data.sources", msgspec.to_builtins(reweighted(settings, 1.0, 0.0))), "training.max_steps=10"],
    )
    state = json.loads((changed.training_state / "state.json").read_text())
    assert state["data"] == {"position": 80, "segments": [[0, [1.0, 1.0]], [64, [1.0, 0.0]]]}
    assert "loss/numbers" not in [line for line in Run(tmp_path / "straight").read_log() if "loss" in line][-1]


def test_crops_resume_to_the_byte(tmp_path: Path, corpus_file: Path) -> None:
    settings = on_text(corpus_file, max_steps=8)
    data = msgspec.structs.replace(settings.data, sampling="crops", num_samples=None, log_samples=True)
    settings = msgspec.structs.replace(settings, data=data)
    weights, ids = weights_of(launch(settings, tmp_path / "run")), samples_of(tmp_path / "run")
    starts = [number for batch in ids.values() for number in batch]
    assert len(set(starts)) == 64
    assert any(start % 16 for start in starts)
    assert weights_of(resume(tmp_path / "run", from_step=4)) == weights
    assert samples_of(tmp_path / "run") == ids


def reweighted(settings: RunConfig, *weights: float) -> tuple[SourceConfig, ...]:
    pairs = zip(settings.data.sources, weights, strict=True)
    return tuple(msgspec.structs.replace(source, weight=weight) for source, weight in pairs)


def test_other_sources_are_another_run(tmp_path: Path) -> None:
    settings = on_sources(tmp_path, max_steps=4)
    launch(settings, tmp_path / "run", callbacks=[])
    swapped = msgspec.to_builtins(settings.data.sources[::-1])
    with pytest.raises(ConfigError, match=r"(?s)`data.sources` can't change on resume.*the weights of data.sources"):
        resume(tmp_path / "run", overrides=[("data.sources", swapped)])
