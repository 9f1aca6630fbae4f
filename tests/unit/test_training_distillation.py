"""Learning from a teacher's probabilities."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.checkpoint import Checkpoint, Run
from llm.data import IGNORED_LABEL, TokenBatch
from llm.errors import CheckpointError, ConfigError
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.settings.distillation import DistillationConfig
from llm.settings.merge import load_run_config
from llm.settings.run import RunConfig
from llm.training import launch
from llm.training.distillation import DistillationTask
from llm.training.launch import resume
from llm.training.losses import divergences
from llm.training.teacher import Teacher
from tests.unit.training_samples import on_text

WORDS = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer. "


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    file.write_text("".join(f"{number} {WORDS}" for number in range(400)))
    return file


@pytest.fixture(scope="module")
def teacher(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return launch(on_text(corpus, max_steps=60, validate_every=60, checkpoint_every=60), tmp_path_factory.mktemp("t"))


def student(corpus: Path, teacher: Checkpoint, distillation: dict[str, Any], **training: Any) -> RunConfig:
    """A run with the teacher's tokenizer that learns from it."""
    settings = on_text(corpus, **training)
    tokenizer = msgspec.structs.replace(settings.tokenizer, path=str(teacher.path))
    found = DistillationConfig(teacher=str(teacher.path), **distillation)
    return msgspec.structs.replace(settings, tokenizer=tokenizer, distillation=found)


def task_of(teacher: Checkpoint, folder: Path | None = None, **distillation: Any) -> DistillationTask:
    settings = DistillationConfig(teacher=str(teacher.path), **distillation)
    config = teacher.config
    return DistillationTask(config, settings, Teacher(teacher, settings, config.vocab_size, folder))


def batch_of(vocab_size: int) -> TokenBatch:
    rng = torch.Generator().manual_seed(3)
    ids, labels = (torch.randint(0, vocab_size, (12,), generator=rng) for _ in range(2))
    labels[[0, 1, 8]] = IGNORED_LABEL
    return TokenBatch(ids, labels, (7, 5))


def logits_of(model: DecoderModel, batch: TokenBatch) -> torch.Tensor:
    return model(batch.token_ids, positions_of(batch.lengths), ForwardContext.for_sequences(batch.lengths))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 9), st.sampled_from(["forward", "reverse"]))
def test_divergences_are_those_of_all_tokens_or_less(seed: int, vocab: int, kind: str) -> None:
    rng = torch.Generator().manual_seed(seed)
    own, theirs = (torch.log_softmax(2 * torch.randn(4, vocab, generator=rng).double(), -1) for _ in range(2))
    of, by = (theirs, own) if kind == "forward" else (own, theirs)
    whole = F.kl_div(by, of, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(divergences(own, theirs, kind, is_whole=True), whole)
    _, ids = theirs.topk(max(1, vocab - 2))
    coarse = divergences(own.gather(1, ids), theirs.gather(1, ids), kind)
    assert (coarse <= whole + 1e-6).all()
    assert (coarse >= -1e-6).all()
    if vocab > 2:
        rest = [1 - one.gather(1, ids).exp().sum(-1) for one in (of, by)]
        plain = sum(of.gather(1, ids)[:, k].exp() * (of - by).gather(1, ids)[:, k] for k in range(ids.shape[1]))
        torch.testing.assert_close(coarse, plain + rest[0] * (rest[0] / rest[1]).log(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["forward", "reverse"])
@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 1.0), (1.0, 0.3), (2.0, 1.0), (2.0, 0.3)])
def test_loss_and_gradients_are_those_of_the_definition(
    teacher: Checkpoint, kind: str, temperature: float, weight: float
) -> None:
    task = task_of(teacher, divergence=kind, temperature=temperature, weight=weight, top_k=10_000)
    torch.manual_seed(5)
    model = task.build_model().train()
    batch = batch_of(teacher.config.vocab_size)
    loss = task.loss_sum(model, batch)
    loss.backward()
    found = {name: one.grad.clone() for name, one in model.named_parameters()}
    model.zero_grad()

    is_learnt = batch.labels != IGNORED_LABEL
    with torch.no_grad():
        theirs = torch.log_softmax(logits_of(teacher.model("float32"), batch)[is_learnt] / temperature, -1)
    logits = logits_of(model, batch)[is_learnt]
    own = torch.log_softmax(logits / temperature, -1)
    of, by = (theirs, own) if kind == "forward" else (own, theirs)
    divergence = (of.exp() * (of - by)).sum()
    entropy = F.cross_entropy(logits, batch.labels[is_learnt], reduction="sum")
    wanted = weight * temperature**2 * divergence + (1 - weight) * entropy
    wanted.backward()
    # Kept log-probabilities have 11 bits.
    torch.testing.assert_close(loss, wanted, rtol=2e-3, atol=1e-3)
    for name, one in model.named_parameters():
        torch.testing.assert_close(found[name], one.grad, rtol=2e-2, atol=2e-3, msg=name)
    sums = dict(zip(task.metric_names, task.metric_sums(batch), strict=False))
    assert sums["divergence"] == pytest.approx(divergence.item(), rel=2e-3, abs=1e-3)
    if "cross_entropy" in sums:
        assert sums["cross_entropy"] == pytest.approx(entropy.item(), rel=1e-4)


def test_what_is_kept_is_what_was_computed(teacher: Checkpoint, tmp_path: Path) -> None:
    batch = batch_of(teacher.config.vocab_size)
    first = task_of(teacher, tmp_path, top_k=5).teacher.top(batch)
    again = task_of(teacher, tmp_path, top_k=5).teacher
    found = again.top(TokenBatch(*(one.roll(5) for one in (batch.token_ids, batch.labels)), (5, 7)))
    assert again._model is None
    assert all(torch.equal(one.roll(5, 0), other) for one, other in zip(first, found, strict=True))
    alone = task_of(teacher, top_k=5).teacher.top(batch)
    assert all(torch.equal(*pair) for pair in zip(first, alone, strict=True))
    [file] = tmp_path.glob("teacher-*/*.top")
    file.write_bytes(file.read_bytes()[:-1])
    torn = task_of(teacher, tmp_path, top_k=5).teacher
    assert all(torch.equal(*pair) for pair in zip(first, torn.top(batch), strict=True))
    assert torn._model is not None
    assert len(list(tmp_path.glob("teacher-*/*.top"))) == 2


def test_a_student_comes_nearer_to_its_teacher(corpus: Path, teacher: Checkpoint, tmp_path: Path) -> None:
    config = student(corpus, teacher, {"top_k": 8}, max_steps=40, validate_every=20, checkpoint_every=20)
    launch(config, tmp_path / "run")
    steps = [line for line in Run(tmp_path / "run").read_log() if "loss" in line]
    assert steps[-1]["divergence"] < 0.5 * steps[0]["divergence"]
    assert steps[-1]["cross_entropy"] < steps[0]["cross_entropy"]
    validation = [line["validation_loss"] for line in Run(tmp_path / "run").read_log() if "validation_loss" in line]
    assert validation[-1] < validation[0]
    last = Run(tmp_path / "run").read_log()[-1]
    assert "bits_per_byte" in last
    assert not [name for line in steps for name in line if name == "bits_per_byte"]
    assert "validation_divergence" not in last


def test_a_resumed_run_has_the_weights_of_a_straight_one(corpus: Path, teacher: Checkpoint, tmp_path: Path) -> None:
    config = student(corpus, teacher, {"top_k": 8, "temperature": 2.0, "weight": 0.5}, max_steps=8)
    straight = launch(config, tmp_path / "straight").model("float32").state_dict()
    shutil.copytree(tmp_path / "straight", tmp_path / "run")
    for file in tmp_path.glob("run/data/teacher-*/*.top"):
        file.unlink()
    resumed = resume(tmp_path / "run", from_step=4).model("float32").state_dict()
    assert all(torch.equal(resumed[name], one) for name, one in straight.items())


def test_a_teacher_with_another_tokenizer_is_refused(corpus: Path, teacher: Checkpoint, tmp_path: Path) -> None:
    config = student(corpus, teacher, {})
    own = msgspec.structs.replace(config.tokenizer, path=None, vocab_size=280)
    with pytest.raises(ConfigError, match=r"must have the student's tokenizer.*\n.*tokenizer\.path"):
        launch(msgspec.structs.replace(config, tokenizer=own), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distillation.top_k=3"], "need a teacher"),
        (["distillation.teacher=x", "data.kind=synthetic"], "needs `data.kind` text or chat"),
        (["distillation.teacher=x", "distillation.weight=0"], r"`distillation.weight` must be"),
    ],
)
def test_settings_without_sense_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(overrides=overrides, environ={})


def test_a_missing_teacher_is_named(corpus: Path, teacher: Checkpoint, tmp_path: Path) -> None:
    config = student(corpus, teacher, {})
    gone = msgspec.structs.replace(config.distillation, teacher=str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        launch(msgspec.structs.replace(config, distillation=gone), tmp_path / "run")
