"""Text that the model writes while it learns."""

import time
from pathlib import Path

import pytest
import torch

from llm import LLM, SamplingParams
from llm.checkpoint import Run
from llm.training import JsonlLogger, standard_callbacks
from llm.training.launch import launch, resume
from tests.unit.processes import ends_of, in_processes
from tests.unit.training_samples import config, on_text, tensors_of, weights_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> tuple[Run, Run]:
    """A straight run to step 8 with samples, and one without that stopped at 6."""
    folder = tmp_path_factory.mktemp("runs")
    settings = on_text(corpus_file, max_steps=8, sample_tokens=12, validate_every=4, checkpoint_every=2)
    launch(settings, folder / "straight")
    launch(on_text(corpus_file, max_steps=8, sample_tokens=0), folder / "silent")
    return Run(folder / "straight"), Run(folder / "silent")


def test_samples_are_written_at_validations_and_checkpoints_alike(runs: tuple[Run, Run], corpus_file: Path) -> None:
    samples = runs[0].samples.read()
    assert [sample["step"] for sample in samples] == [2, 4, 6, 8]
    held_out = corpus_file.read_text()[-2000:]
    assert samples[0]["prompt"] in held_out
    assert all(sample["text"] for sample in samples)


def test_a_sample_is_what_the_checkpoint_would_write(runs: tuple[Run, Run]) -> None:
    assert runs[0].samples.read()[-1]["text"] == text_of_the_newest(runs[0])


def text_of_the_newest(run: Run) -> str:
    """What the newest checkpoint writes after the prompt of the samples."""
    model = LLM(run.newest())
    ids = model.tokenizer.encode(run.samples.read()[-1]["prompt"])[-8:]
    params = SamplingParams(max_tokens=8, temperature=0.8, top_k=50, seed=0)
    return model.generate([ids], params)[0].text


@pytest.mark.long
def test_processes_that_share_a_model_write_at_validations_together(tmp_path: Path, corpus_file: Path) -> None:
    run, silent = Run(tmp_path / "run"), Run(tmp_path / "silent")
    values = {"max_steps": 8, "checkpoint_every": 2, "sharding": "fsdp", "async_save": True}
    in_processes(2, launch, on_text(corpus_file, sample_tokens=12, **values), run.path)
    in_processes(2, launch, on_text(corpus_file, sample_tokens=0, **values), silent.path)
    assert [sample["step"] for sample in run.samples.read()] == [4, 8]
    assert run.samples.read()[-1]["text"] == text_of_the_newest(run)
    weights = tensors_of(silent.newest())  # type: ignore[arg-type]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tensors_of(run.newest()).items())  # type: ignore[arg-type]


@pytest.mark.long
def test_all_processes_end_at_once_where_the_main_one_cannot_write_a_sample(tmp_path: Path, corpus_file: Path) -> None:
    run = Run(tmp_path / "run")
    run.samples.file.mkdir(parents=True)
    settings = on_text(corpus_file, max_steps=8, sample_tokens=4, sharding="fsdp", process_timeout_s=200)
    began = time.monotonic()
    exit_codes, messages = ends_of(2, launch, settings, run.path)
    assert time.monotonic() - began < 150
    assert exit_codes == [1, 1]
    assert "samples.jsonl" in next(message for message in messages if message.startswith("rank 0"))
    other = next(message for message in messages if message.startswith("rank 1"))
    assert "the main process (rank 0) failed to write a sample" in other


def test_samples_leave_training_as_it_is(runs: tuple[Run, Run]) -> None:
    assert runs[1].samples.read() == []
    assert weights_of(runs[0].newest()) == weights_of(runs[1].newest())


def test_a_resumed_run_writes_the_same_samples(runs: tuple[Run, Run], tmp_path: Path, corpus_file: Path) -> None:
    run = Run(tmp_path / "cut")
    launch(on_text(corpus_file, max_steps=4, sample_tokens=12, checkpoint_every=2), run.path)
    run.samples.append({"step": 7, "prompt": "", "text": "from a life that was lost"})
    resume(run.path, overrides=["training.max_steps=8"])
    texts = [(sample["step"], sample["prompt"]) for sample in run.samples.read()]
    assert texts == [(sample["step"], sample["prompt"]) for sample in runs[0].samples.read()]


def test_a_prompt_of_ones_own_is_continued(tmp_path: Path, corpus_file: Path) -> None:
    settings = on_text(corpus_file, max_steps=1, sample_tokens=4, sample_prompt="Once upon")
    launch(settings, tmp_path / "run")
    assert Run(tmp_path / "run").samples.read()[0]["prompt"] == "Once upon"


def test_runs_without_text_write_no_samples(tmp_path: Path) -> None:
    launch(config(max_steps=1), tmp_path / "run")
    assert Run(tmp_path / "run").samples.read() == []
    kinds = [type(callback) for callback in standard_callbacks(config(), Run(tmp_path / "run"), None, None)]
    assert kinds[0] is JsonlLogger
