"""`llm dpo`: pairs of answers in, a model that prefers the better ones out, on the one training loop."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import llm
from llm.checkpoint import Run, resolve
from llm.cli.main import app
from llm.data import PreferenceDataModule, TokenBatch
from llm.errors import ConfigError, DataError
from llm.models import DecoderModel
from llm.settings.preference import PreferenceConfig
from llm.settings.run import DataConfig, RunConfig, TrainingConfig
from llm.tokenization import choose_chat_template
from llm.training.assembly import build_rows
from llm.training.distributed import Distributed
from llm.training.preferences import PreferenceTask
from llm.training.reference import attach_reference
from llm.training.rows import encoder_of
from tests.reference.preference_losses import answer_logprob, kto_loss, pair_loss
from tests.unit.chat_rows import turn, write_rows
from tests.unit.preference_rows import as_conversations, as_messages, labelled, pair
from tests.unit.training_samples import weights_of

SETTINGS = {"precision": "float32", "device": "cpu", "log_every": 1, "validation_fraction": 0.0, "sample_tokens": 0}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", [pair(number) for number in range(24)])


def prefer(model: Path, rows: Path, out: Path, **settings: Any) -> Run:
    given = {"max_steps": 4, "batch_size": 4, "chat_template": "chatml"} | SETTINGS | settings
    llm.dpo(model, rows, out=out, **given)
    return Run(out)


def logged(run: Run, name: str = "loss") -> list[float]:
    return [line[name] for line in run.read_log() if name in line]


@pytest.mark.parametrize("lora", [(), ("lora.rank=4",)])
def test_the_first_loss_of_dpo_is_that_of_chance(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path, lora: tuple[str, ...]
) -> None:
    run = prefer(tiny_checkpoint, pairs, tmp_path / "run", max_steps=1, overrides=lora)
    [first] = [line for line in run.read_log() if "loss" in line]
    assert abs(first["loss"] - math.log(2)) <= 1e-6
    assert abs(first["rewards/chosen"]) <= 1e-5
    assert bool(list(run.data.glob("reference-*.npy"))) == (not lora)


def batch_of(model: Path, rows: Path, folder: Path, settings: PreferenceConfig) -> TokenBatch:
    """All rows as one batch, with the reference's log-probabilities."""
    config = RunConfig(
        data=DataConfig(kind="preference", paths=(str(rows),), context_length=128, validation_fraction=0.0),
        training=TrainingConfig(precision="float32", device="cpu", batch_size=5, init_from=str(model)),
        model=resolve(model).config,
        preference=settings,
    )
    tokenizer = resolve(model).tokenizer()
    choose_chat_template(tokenizer, "chatml")
    run = Run(folder)
    PreferenceDataModule.prepare(run.data, config.data, encoder_of(config, tokenizer))
    data = build_rows(config, run.data)
    assert isinstance(data, PreferenceDataModule)
    attach_reference(config, run, data, Distributed.start("cpu"))
    dataset = data.train_dataset()
    batch = dataset.batch(np.arange(len(dataset)))
    assert isinstance(batch, TokenBatch)
    return batch


def slow_loss(model: DecoderModel, initial: DecoderModel, batch: TokenBatch, settings: PreferenceConfig) -> Tensor:
    """The mean loss of a batch, one sequence at a time."""
    parts = list(zip(batch.token_ids.split(batch.lengths), batch.labels.split(batch.lengths), strict=True))
    with torch.no_grad():
        reference = [answer_logprob(initial, *part)[0] for part in parts]
    found = [answer_logprob(model, *part) for part in parts]
    marks = batch.columns["mark"].tolist()
    if settings.loss == "kto":
        gains = [one[0] - other for one, other in zip(found, reference, strict=True)]
        z0 = torch.stack([gain for gain, mark in zip(gains, marks, strict=True) if mark == 0]).mean().detach()
        losses = [
            kto_loss(one[0], other, mark == 1, z0.clamp(min=0), settings)
            for one, other, mark in zip(found, reference, marks, strict=True)
            if mark
        ]
    else:
        losses = [
            pair_loss(
                [one[0] for one in found[at : at + 2]],
                reference[at : at + 2],
                [one[1] for one in found[at : at + 2]],
                settings,
            )
            for at in range(0, len(found), 2)
        ]
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    "settings",
    [
        PreferenceConfig(loss="dpo", beta=0.3),
        PreferenceConfig(loss="dpo", label_smoothing=0.2),
        PreferenceConfig(loss="ipo", beta=0.2),
        PreferenceConfig(loss="simpo", gamma_ratio=0.3),
        PreferenceConfig(loss="orpo", beta=0.4),
        PreferenceConfig(loss="kto", wanted_weight=1.5, unwanted_weight=0.7),
    ],
    ids=lambda settings: f"{settings.loss}-{settings.label_smoothing}",
)
def test_losses_and_gradients_are_those_of_the_papers(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path, settings: PreferenceConfig
) -> None:
    batch = batch_of(tiny_checkpoint, pairs, tmp_path / "run", settings)
    checkpoint = resolve(tiny_checkpoint)
    task = PreferenceTask(checkpoint.config, settings, initial=checkpoint)
    model, initial = task.build_model(), checkpoint.model("float32")
    assert isinstance(model, DecoderModel)
    assert isinstance(initial, DecoderModel)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
        task.prepare(model, [batch])
    loss = task.loss_sum(model, batch) / task.count_targets(batch)
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    slow = slow_loss(model, initial, batch, settings)
    slow.backward()
    assert loss.item() == pytest.approx(slow.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert (found[name] - parameter.grad).abs().max() <= 1e-5 * max(1.0, float(parameter.grad.abs().max())), name


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_resumed_run_and_one_in_passes_are_the_run_itself(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path, loss: str
) -> None:
    steps = {"max_steps": 4, "checkpoint_every": 2, "validation_fraction": 0.3, "validate_every": 2, "loss": loss}
    whole = prefer(tiny_checkpoint, pairs, tmp_path / "whole", **steps)
    shutil.copytree(whole.path, tmp_path / "killed")
    killed = Run(tmp_path / "killed")
    killed.drop_after(2)
    (killed.path / "latest").write_text("checkpoints/step_00000002\n")
    assert weights_of(llm.dpo(resume=killed.path, callbacks=[])) == weights_of(whole.newest())
    passes = prefer(tiny_checkpoint, pairs, tmp_path / "passes", **steps, gradient_accumulation_steps=2)
    for name in ("loss", "rewards/chosen", "rewards/rejected", "grad_norm", "validation_loss"):
        assert logged(passes, name) == pytest.approx(logged(whole, name), rel=1e-4, abs=1e-6), name
    assert len(logged(whole, "validation_rewards/chosen")) == 2


def test_a_reference_is_computed_once_and_used_again(tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    cache = {"overrides": [f"data.cache={tmp_path / 'cache'}"]}
    one = prefer(tiny_checkpoint, pairs, tmp_path / "one", **cache)
    [file] = (tmp_path / "cache").glob("reference-*.npy")
    written = file.stat().st_mtime_ns
    values = np.load(file)
    assert values.shape == (24, 2)
    two = prefer(tiny_checkpoint, pairs, tmp_path / "two", **cache)
    assert file.stat().st_mtime_ns == written
    assert weights_of(one.newest()) == weights_of(two.newest())
    other = prefer(one.path, pairs, tmp_path / "other", **cache)  # other weights
    assert len(list((tmp_path / "cache").glob("reference-*.npy"))) == 2
    file.write_bytes(file.read_bytes()[:-8])
    llm.dpo(resume=one.path, max_steps=5, callbacks=[])
    assert np.array_equal(np.load(file), values)
    assert other.newest() is not None


@pytest.mark.long
def test_two_processes_learn_what_one_learns(tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    # Of all losses, this one looks at the whole batch before its passes.
    loss = "kto"
    alone = prefer(tiny_checkpoint, pairs, tmp_path / "one", loss=loss, validation_fraction=0.3, validate_every=2)
    two = Run(tmp_path / "two")
    words = [
        tiny_checkpoint,
        "--data",
        pairs,
        "--out",
        two.path,
        "--chat-template",
        "chatml",
        "--nproc",
        2,
        "--loss",
        loss,
    ]
    words += [
        "max_steps=4",
        "batch_size=4",
        "precision=float32",
        "device=cpu",
        "log_every=1",
        "validation_fraction=0.3",
    ]
    words += ["validate_every=2", "sample_tokens=0"]
    command = [sys.executable, "-m", "llm", "dpo", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert two.last_facts()["world_size"] == 2
    for name in ("loss", "rewards/chosen", "rewards/rejected", "validation_loss"):
        assert logged(two, name) == pytest.approx(logged(alone, name), rel=1e-4, abs=1e-6)


def test_all_forms_of_a_row_are_the_same_pair(tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    rows = [pair(number) for number in range(24)]
    chats = [as_conversations(row) | {"prompt": row["prompt"]} for row in rows]  # UltraFeedback's
    losses = [logged(prefer(tiny_checkpoint, pairs, tmp_path / "texts"))]
    for name, forms in (("lists", map(as_messages, rows)), ("whole", map(as_conversations, rows)), ("repeated", chats)):
        file = write_rows(tmp_path / f"{name}.jsonl", forms)
        losses.append(logged(prefer(tiny_checkpoint, file, tmp_path / name)))
    assert losses == [losses[0]] * 4
    split = write_rows(tmp_path / "split.jsonl", [one for row in rows for one in labelled(row)])
    kto = [prefer(tiny_checkpoint, file, tmp_path / f"kto-{file.stem}", loss="kto") for file in (pairs, split)]
    assert logged(kto[0]) == logged(kto[1])


def test_simpo_needs_no_reference_and_rewards_come_apart(tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    steps = {"max_steps": 24, "learning_rate": 3e-3, "validation_fraction": 0.5, "validate_every": 24}
    run = prefer(tiny_checkpoint, pairs, tmp_path / "run", loss="simpo", log_to="csv", epochs=8, **steps)
    assert list(run.data.glob("reference*")) == []
    assert logged(run, "validation_accuracy")[-1] == 1.0
    assert logged(run, "rewards/margin")[-1] > logged(run, "rewards/margin")[0]
    assert "rewards/margin" in (run.path / "log.csv").read_text().partition("\n")[0]
    report = run.report_file.read_text()
    assert "Rewards" in report
    assert "Pairs in the right order" in report


WRONG = [
    ({"prompt": "Hi", "chosen": "a", "rejected": "a"}, "line 25: `chosen` and `rejected` must differ"),
    ({"prompt": "Hi", "chosen": "", "rejected": "a"}, "line 25: `chosen` must have an answer, got an empty one"),
    ({"prompt": "Hi", "chosen": "a"}, r"line 25: a row must have the fields .*; those there are `prompt`, `chosen`"),
    (
        {"prompt": "Hi", "completion": "a", "label": True},
        "line 25: the row has one answer .*\nhint: `preference.loss=kto`",
    ),
    (
        {"chosen": [turn("user", "Hi"), turn("bot", "a")], "rejected": [turn("user", "Hi"), turn("assistant", "b")]},
        "line 25: `chosen`: message 2: `role` must be one of",
    ),
    (
        {"chosen": [turn("user", "Hi")], "rejected": [turn("user", "Hi"), turn("assistant", "b")]},
        "line 25: `chosen`: a row must have a turn of the assistant",
    ),
    (
        {
            "chosen": [turn("user", "Hi"), turn("user", "a"), turn("assistant", "a")],
            "rejected": [turn("user", "Hi"), turn("user", "b"), turn("assistant", "a")],
        },
        "line 25: `chosen`: the answer must begin with a turn of the assistant, got one of role `user` as message 2",
    ),
    (
        {
            "chosen": [turn("user", "A"), turn("assistant", "a")],
            "rejected": [turn("user", "B"), turn("assistant", "b")],
        },
        "line 25: `chosen` and `rejected` must answer the same prompt",
    ),
    ({"chosen": "a", "rejected": "b"}, "line 25: `prompt` is missing"),
    ({"prompt": "Hi", "chosen": "no " * 200, "rejected": "a"}, "line 25: the row has .* tokens"),
    (
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": -1},
        "line 25: `margin` must be a number of at least 0",
    ),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_a_wrong_row_is_one_error_and_leaves_no_run(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path, wrong: dict[str, Any], words: str
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(pairs.read_text() + json.dumps(wrong) + "\n")
    with pytest.raises(DataError, match=words):
        prefer(tiny_checkpoint, bad, tmp_path / "run")
    assert not Run(tmp_path / "run").exists
    assert list((tmp_path / "run").glob("*/*")) == []


def test_a_wrong_label_is_an_error_of_its_row(tiny_checkpoint: Path, tmp_path: Path) -> None:
    row = {"prompt": "Hi", "completion": "a", "label": "good"}
    with pytest.raises(DataError, match="line 1: `label` must be true or false, got 'good'"):
        prefer(tiny_checkpoint, write_rows(tmp_path / "bad.jsonl", [row]), tmp_path / "run", loss="kto")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.packing=true", "`data.packing=true` can't be combined with `data.kind=preference`"),
        ("data.loss_on=all", "`data.loss_on=all` can't be combined"),
        ("preference.label_smoothing=0.5", "`preference.label_smoothing` must be"),
        ("preference.centering=0.1", "`preference.centering` is for `preference.loss=reward`, got `dpo`"),
        ("preference.loss=dop", "`preference.loss` must be one of dpo, ipo"),
    ],
)
def test_settings_that_do_not_suit_preferences_are_refused(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path, setting: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        prefer(tiny_checkpoint, pairs, tmp_path / "run", overrides=[setting])
    with pytest.raises(ConfigError, match=r"settings of `preference` need `data.kind=preference`, got `chat`"):
        llm.sft(tiny_checkpoint, pairs, out=tmp_path / "run", overrides=["preference.beta=1"])


def test_the_command_names_the_model_first_and_shows_both_answers(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path
) -> None:
    def run(*arguments: object) -> str:
        done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    words = (tiny_checkpoint, "--data", pairs, "--chat-template", "chatml", "training.precision=float32")
    assert "nothing is written" in run("dpo", *words, "--dry-run")
    out = tmp_path / "run"
    said = run("dpo", *words, "--out", out, "--max-steps", 2, "--batch-size", 2, "--device", "cpu", "--loss", "ipo")
    assert f"next:  llm chat {out}" in said
    assert f"next:  llm chat {out}" in run("dpo", "--resume", out, "--max-steps", 3)
    info = run("data", "info", pairs, "--tokenizer", tiny_checkpoint, "--chat-template", "chatml")
    assert "preferences: 1 file, 24 rows: 24 of format `pairs`" in info
    shown = run("data", "preview", pairs, "--tokenizer", tiny_checkpoint, "--chat-template", "chatml", "--sample", 1)
    assert "wanted" in shown
    assert "unwanted" in shown
    assert shown.count("What colour is box 1?") == 2
