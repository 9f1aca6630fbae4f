"""`llm reward`: a model that gives answers rewards, on disk as transformers has it, and served."""

import math
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import llm
from llm.checkpoint import Run, resolve
from llm.cli.main import app
from llm.errors import ConfigError, InvalidArgumentError
from llm.models.reward import RewardModel
from llm.serving import ServerConfig, ServerHandle
from llm.settings.preference import PreferenceConfig
from llm.training.losses import reward_losses
from tests.unit.chat_rows import turn, write_rows
from tests.unit.preference_rows import pair
from tests.unit.training_samples import weights_of

SETTINGS = {"precision": "float32", "device": "cpu", "log_every": 1, "sample_tokens": 0}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", [pair(number) for number in range(24)])


def judge_of(model: Path, rows: Path, out: Path, **settings: Any) -> Run:
    given = {"max_steps": 4, "batch_size": 4, "chat_template": "chatml", "callbacks": None} | SETTINGS | settings
    llm.reward(model, rows, out=out, **given)
    return Run(out)


@pytest.fixture(scope="module")
def judge(tiny_checkpoint: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A reward model that has learnt to tell chosen from rejected answers."""
    steps = {"max_steps": 24, "epochs": 8, "learning_rate": 3e-3, "validation_fraction": 0.5, "validate_every": 24}
    return judge_of(tiny_checkpoint, pairs, tmp_path_factory.mktemp("judge") / "run", **steps)


def conversation(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [turn("user", row["prompt"]), turn("assistant", row[name])]


def test_a_reward_model_learns_which_of_two_answers_is_better(judge: Run) -> None:
    lines = judge.read_log()
    assert [line["validation_accuracy"] for line in lines if "validation_accuracy" in line][-1] == 1.0
    model = llm.LLM(judge.path)
    conversations = [conversation(pair(3), name) for name in ("chosen", "rejected")]
    chosen, rejected = model.rewards(conversations)
    assert chosen > rejected
    assert model.rewards(conversations[:1]) == pytest.approx([chosen], rel=1e-5)
    with pytest.raises(InvalidArgumentError, match="a reward model: it scores answers and generates no text"):
        model.generate("Hi")


def test_transformers_opens_a_reward_model_and_gives_the_same_rewards(judge: Run) -> None:
    checkpoint = resolve(judge.path)
    theirs = AutoModelForSequenceClassification.from_pretrained(checkpoint.path, dtype=torch.float32)
    assert type(theirs).__name__ == "LlamaForSequenceClassification"
    model = llm.LLM(judge.path)
    for name in ("chosen", "rejected"):
        messages = conversation(pair(5), name)
        ids = torch.tensor([model.session.conversation(messages)])
        with torch.no_grad():
            [[score]] = theirs(ids).logits.tolist()
        assert model.rewards([messages]) == pytest.approx([score], abs=1e-5)


def test_a_long_conversation_is_judged_in_parts_as_in_one(judge: Run) -> None:
    model = llm.LLM(judge.path)
    ids = model.session.conversation(conversation(pair(1), "rejected"))
    from llm.inference.scoring import rewards

    whole, parts = (rewards(model.engine.runner.model, [ids], size) for size in (4096, 8))
    assert np.allclose(whole, parts, atol=1e-5)


def test_a_resumed_run_has_the_bytes_of_one_that_never_stopped(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path
) -> None:
    whole = judge_of(tiny_checkpoint, pairs, tmp_path / "whole", checkpoint_every=2)
    shutil.copytree(whole.path, tmp_path / "killed")
    killed = Run(tmp_path / "killed")
    killed.drop_after(2)
    (killed.path / "latest").write_text("checkpoints/step_00000002\n")
    assert weights_of(llm.reward(resume=killed.path, callbacks=[])) == weights_of(whole.newest())
    passes = judge_of(tiny_checkpoint, pairs, tmp_path / "passes", gradient_accumulation_steps=2)
    for name in ("loss", "grad_norm", "rewards/margin"):
        found = [[line[name] for line in run.read_log() if name in line] for run in (whole, passes)]
        assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-6), name


def test_a_reward_model_goes_on_with_its_head(judge: Run, pairs: Path, tmp_path: Path) -> None:
    again = judge_of(judge.path, pairs, tmp_path / "again", max_steps=1, learning_rate=1e-9)
    before, after = (resolve(run.path).model("float32") for run in (judge, again))
    assert isinstance(before, RewardModel)
    assert isinstance(after, RewardModel)
    assert torch.allclose(before.score.weight, after.score.weight, atol=1e-6)
    with pytest.raises(ConfigError, match="must name a model that writes text, got a LlamaForSequenceClassification"):
        llm.dpo(judge.path, pairs, out=tmp_path / "dpo", max_steps=1, batch_size=2, **SETTINGS)


def test_margins_and_centred_rewards_are_those_of_their_equations() -> None:
    chosen, rejected = torch.tensor([0.5, -1.0]), torch.tensor([0.1, 0.3])
    margins = torch.tensor([0.2, 0.0])
    found = reward_losses(chosen, rejected, margins, PreferenceConfig(loss="reward", centering=0.1))
    wanted = [
        math.log(1 + math.exp(-(good - bad - margin))) + 0.1 * (good + bad) ** 2
        for good, bad, margin in zip(chosen.tolist(), rejected.tolist(), margins.tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)


def test_margins_of_rows_reach_the_loss(tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [pair(number) | {"margin": 1.5} for number in range(24)])
    losses = [
        next(line["loss"] for line in judge_of(tiny_checkpoint, file, tmp_path / file.stem, max_steps=1).read_log())
        for file in (pairs, rows)
    ]
    # The slope of the loss is between a half and one where pairs are in the wrong order, as most are at first.
    assert 0.75 <= losses[1] - losses[0] <= 1.5


def test_adapters_are_refused_for_a_reward_model(tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`lora.rank` must be null with `preference.loss=reward`, got 4"):
        judge_of(tiny_checkpoint, pairs, tmp_path / "run", overrides=["lora.rank=4"])


def test_the_server_scores_answers_in_every_form(judge: Run, tiny_checkpoint: Path) -> None:
    row = pair(2)
    conversations = [conversation(row, name) for name in ("chosen", "rejected")]
    model = llm.LLM(judge.path)
    wanted = pytest.approx(model.rewards(conversations), abs=1e-5)
    ids = [model.session.conversation(messages) for messages in conversations]
    with ServerHandle(str(judge.path), ServerConfig(port=0, served_model_name=("judge",))) as server:

        def post(path: str, **body: Any) -> httpx.Response:
            return httpx.post(f"{server.url}{path}", json={"model": "judge"} | body, timeout=60)

        for body in (
            {"messages": conversations},
            {"input": ids},
            {"text_1": row["prompt"], "text_2": [row["chosen"], row["rejected"]]},
        ):
            answer = post("/v1/score", **body).json()
            assert [one["score"] for one in answer["data"]] == wanted, body
            assert [(one["index"], one["object"]) for one in answer["data"]] == [(0, "score"), (1, "score")]
            assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))
        [one] = post("/v1/score", messages=conversations[0]).json()["data"]
        assert [one["score"], answer["data"][1]["score"]] == wanted
        for body, param in (
            ({}, "messages"),
            ({"text_1": "a"}, "text_2"),
            ({"messages": [*conversations, turn("user", "a")]}, "messages"),
        ):
            error = post("/v1/score", **body)
            assert (error.status_code, error.json()["error"]["param"]) == (400, param)
        refused = post("/v1/chat/completions", messages=[turn("user", "Hi")])
        assert refused.status_code == 400
        assert "reward model" in refused.json()["error"]["message"]
    with ServerHandle(str(tiny_checkpoint), ServerConfig(port=0, served_model_name=("judge",))) as server:
        plain = httpx.post(f"{server.url}/v1/score", json={"model": "judge", "messages": conversations[0]}, timeout=60)
        assert plain.status_code == 400
        assert "reward model" in plain.json()["error"]["message"]


def test_the_command_says_how_the_model_is_asked(tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    words = ("reward", tiny_checkpoint, "--data", pairs, "--chat-template", "chatml", "--out", tmp_path / "run")
    words += ("--max-steps", 1, "--batch-size", 2, "--device", "cpu", "training.precision=float32")
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "POST /v1/score" in done.output
    info = CliRunner().invoke(app, ["info", str(tmp_path / "run")], catch_exceptions=False)
    assert "LlamaForSequenceClassification" in info.output
