"""`llm sft`: rows in, a model that answers out, on the one training loop."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import llm
from llm.checkpoint import Run, resolve
from llm.cli.main import app
from llm.data import IGNORED_LABEL, ChatDataModule, TokenBatch
from llm.errors import ChatTemplateError, ConfigError, DataError
from llm.settings.run import DataConfig
from llm.tokenization import choose_chat_template
from llm.training import LanguageModelingTask
from llm.training.losses import token_losses
from llm.training.rows import row_encoder
from tests.unit.chat_rows import dialogue, turn, write_rows
from tests.unit.training_samples import weights_of

SETTINGS = {"precision": "float32", "device": "cpu", "callbacks": []}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "chats.jsonl", [dialogue(number) for number in range(24)])


def tune(model: Path, rows: Path, out: Path, **settings: Any) -> Run:
    llm.sft(model, rows, out=out, chat_template="chatml", **{"max_steps": 4, "batch_size": 2} | SETTINGS | settings)
    return Run(out)


def test_a_run_chooses_what_suits_fine_tuning_and_keeps_the_template(
    tiny_checkpoint: Path, rows: Path, tmp_path: Path
) -> None:
    llm.sft(tiny_checkpoint, rows, out=tmp_path / "run", chat_template="chatml", epochs=1, **SETTINGS)
    run = Run(tmp_path / "run")
    config = run.read_config()
    assert (config.data.kind, config.data.packing, config.data.validation_fraction) == ("chat", True, 0.05)
    assert (config.data.context_length, config.training.epochs) == (128, 1)
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("adamw", 3e-4)
    tokenizer = run.newest().tokenizer()
    assert "<|im_start|>" in str(tokenizer.chat_template)
    assert tokenizer.chat_stop == ("<|im_end|>",)


def test_adapters_learn_rows_at_a_higher_rate(tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    run = tune(tiny_checkpoint, rows, tmp_path / "run", overrides=["lora.rank=4"], max_steps=2)
    assert run.read_config().optimizer.learning_rate == 3e-3
    assert (run.checkpoint(2).path / "adapter_config.json").is_file()
    assert llm.LLM(run.path).chat([turn("user", "Hi")], llm.SamplingParams(max_tokens=1)).usage.completion_tokens == 1


def test_a_run_learns_its_rows_and_shows_an_answer(tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 60, "batch_size": 4, "learning_rate": 1e-2, "validate_every": 30, "callbacks": None}
    run = tune(tiny_checkpoint, rows, tmp_path / "run", **settings)
    losses = losses_of(run)
    assert losses[-1] < losses[0] / 4
    sample = run.samples.read()[-1]
    assert sample["prompt"].endswith("<|im_start|>assistant\n")
    assert "What colour is box" in sample["prompt"]
    said = llm.LLM(run.path).chat(
        [turn("user", "What colour is box 3?")], llm.SamplingParams(temperature=0, max_tokens=40)
    )
    assert said.text.startswith("Box ")
    assert said.finish_reason == "stop"


def test_a_resumed_run_has_the_bytes_of_one_that_never_stopped(
    tiny_checkpoint: Path, rows: Path, tmp_path: Path
) -> None:
    whole = tune(tiny_checkpoint, rows, tmp_path / "whole", max_steps=6, checkpoint_every=3)
    shutil.copytree(whole.path, tmp_path / "killed")
    killed = Run(tmp_path / "killed")
    killed.drop_after(3)
    (killed.path / "latest").write_text("checkpoints/step_00000003\n")
    next(killed.data.glob("*-learnt.bin")).unlink()
    again = llm.sft(resume=killed.path, callbacks=[])
    assert weights_of(again) == weights_of(whole.newest())


@pytest.mark.long
def test_two_processes_learn_what_one_learns(tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    alone = tune(tiny_checkpoint, rows, tmp_path / "one", packing=False, callbacks=None)
    two = Run(tmp_path / "two")
    words = ["--model", tiny_checkpoint, "--data", rows, "--out", two.path, "--chat-template", "chatml", "--nproc", 2]
    words += ["max_steps=4", "batch_size=2", "precision=float32", "device=cpu", "packing=false"]
    command = [sys.executable, "-m", "llm", "sft", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert two.last_facts()["world_size"] == 2
    assert losses_of(two) == pytest.approx(losses_of(alone), rel=1e-5)


def losses_of(run: Run) -> list[float]:
    return [line["loss"] for line in run.read_log() if "loss" in line]


def test_passes_of_a_step_give_the_gradient_of_one(tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    steps = {"max_steps": 2, "batch_size": 4, "log_every": 1}
    one = tune(tiny_checkpoint, rows, tmp_path / "one", **steps)
    two = tune(tiny_checkpoint, rows, tmp_path / "two", **steps, gradient_accumulation_steps=4)
    norms = [[line["grad_norm"] for line in run.read_log() if "grad_norm" in line] for run in (one, two)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def losses_by_row(model: Path, rows: Path, folder: Path, packing: bool) -> dict[tuple[int, ...], torch.Tensor]:
    """The loss of each token of each row, by the row's ids."""
    checkpoint = resolve(model)
    tokenizer = checkpoint.tokenizer()
    choose_chat_template(tokenizer, "chatml")
    config = DataConfig(kind="chat", paths=(str(rows),), packing=packing, validation_fraction=0.0)
    ChatDataModule.prepare(folder, config, row_encoder(tokenizer, "assistant"))
    dataset = ChatDataModule(folder, 128, config).train_dataset()
    task = LanguageModelingTask(checkpoint.config, initial=checkpoint)
    network = task.build_model()
    found = {}
    for idx in range(len(dataset)):
        batch = dataset.batch(np.array([idx]))
        assert isinstance(batch, TokenBatch)
        losses = token_losses(network, batch).detach()
        assert torch.equal(losses != 0, batch.labels != IGNORED_LABEL)
        for ids, part in zip(batch.token_ids.split(batch.lengths), losses.split(batch.lengths), strict=True):
            found[tuple(ids.tolist())] = part
    return found


def test_packed_rows_have_the_loss_of_rows_alone(tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    packed = losses_by_row(tiny_checkpoint, rows, tmp_path / "packed", packing=True)
    alone = losses_by_row(tiny_checkpoint, rows, tmp_path / "alone", packing=False)
    assert packed.keys() == alone.keys()
    assert len(packed) == 12
    for ids, losses in alone.items():
        assert torch.allclose(packed[ids], losses, atol=1e-5), ids


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"messages": [turn("bot", "Hi")]}, "line 25: message 1: `role` must be one of"),
        ({"messages": [turn("user", "Hi")]}, "line 25: a row must have a turn of the assistant"),
        ({"messages": [turn("user", "Hi"), turn("assistant", "no " * 200)]}, "line 25: the row has .* tokens"),
        ("{", "line 25: each line must be a JSON object"),
    ],
)
def test_a_wrong_row_is_one_error_and_leaves_no_run(
    tiny_checkpoint: Path, rows: Path, tmp_path: Path, wrong: Any, words: str
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(rows.read_text() + (wrong if isinstance(wrong, str) else json.dumps(wrong)) + "\n")
    with pytest.raises(DataError, match=words):
        tune(tiny_checkpoint, bad, tmp_path / "run")
    assert not Run(tmp_path / "run").exists
    assert list((tmp_path / "run").glob("*/*")) == []


def test_what_is_missing_is_said_with_the_way_to_get_it(tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none is named\nhint: `--model PATH`"):
        llm.sft(data=rows, out=tmp_path / "run", **SETTINGS)
    with pytest.raises(ConfigError, match="`resume` goes on with the model and template of the run"):
        llm.sft(tiny_checkpoint, resume=tmp_path / "run")
    with pytest.raises(ChatTemplateError, match=r"must be one of .* or a file in Jinja, got 'nope'"):
        llm.sft(tiny_checkpoint, rows, out=tmp_path / "run", chat_template="nope", **SETTINGS)


def test_a_template_from_a_file_ends_answers_where_it_ends_turns(
    tiny_checkpoint: Path, rows: Path, tmp_path: Path
) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }} ##\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    out = tmp_path / "run"
    llm.sft(tiny_checkpoint, rows, out=out, chat_template=file, max_steps=1, batch_size=1, **SETTINGS)
    file.unlink()
    assert resolve(out).tokenizer().chat_stop == ("##",)


def test_the_command_says_the_same_words_as_train(tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    words = ("--model", tiny_checkpoint, "--data", rows, "--chat-template", "chatml", "training.precision=float32")
    assert "nothing is written" in run("sft", *words, "--dry-run")
    out = tmp_path / "run"
    said = run("sft", *words, "--out", out, "--max-steps", 2, "--batch-size", 2, "--device", "cpu")
    assert f"next:  llm chat {out}" in said
    assert f"next:  llm chat {out}" in run("sft", "--resume", out, "--max-steps", 3)
    assert "data.loss_on" in run("sft", "--settings", "learn")
    info = run("data", "info", rows, "--tokenizer", tiny_checkpoint, "--chat-template", "chatml")
    assert "chats: 1 file, 24 rows: 24 of format `messages`" in info
    assert " learnt\n" in info
    shown = run("data", "preview", rows, "--tokenizer", tiny_checkpoint, "--chat-template", "chatml", "--sample", 1)
    assert "What colour is box 1?" in shown
