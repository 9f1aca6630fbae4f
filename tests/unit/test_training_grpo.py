"""`llm grpo`: prompts in, rewarded answers of the house's own engine, on the one training loop."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import llm
from llm.checkpoint import Run, resolve
from llm.cli.main import app
from llm.data import RolloutBatch
from llm.errors import ConfigError, DataError, LLMWarning, TrainingError
from llm.inference import EngineConfig
from llm.models.adapters import adapt
from llm.models.costs import kv_bytes_per_token
from llm.settings.grpo import GrpoConfig
from llm.settings.run import LoraConfig
from llm.settings.sampling import SamplingParams
from llm.training.callbacks import JsonlLogger
from llm.training.dumps import BadStep, read_dump, write_dump
from llm.training.grpo import GrpoTask
from llm.training.losses.policy import advantages, count_targets, policy_loss
from llm.training.rollout_batches import Drawn, concatenated
from llm.training.rollouts import Answer, RolloutEngine
from tests.reference.policy import advantages_by_answer, policy_loss_by_token
from tests.unit.chat_rows import write_rows
from tests.unit.training_samples import weights_of

SETTINGS = {"precision": "float32", "device": "cpu", "log_every": 1}
LOSSES = ("grpo", "dr_grpo", "dapo", "rloo")
REWARD = "def vowels(completions):\n    return [sum(map(text.count, 'aeiou')) / 9 for text in completions]\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grpo")
    write_rows(folder / "prompts.jsonl", [{"prompt": f"Who are you, {name}?"} for name in "ABCDEFGH"])
    (folder / "mine.py").write_text(REWARD)
    return folder


def tune(model: Path, folder: Path, out: Path, **settings: Any) -> Run:
    named = {"max_steps": 3, "batch_size": 4, "group_size": 4, "max_answer_tokens": 12, "learning_rate": 1e-3}
    named |= {"callbacks": [JsonlLogger(Run(out))]} | SETTINGS | settings
    llm.grpo(model, folder / "prompts.jsonl", f"{folder / 'mine.py'}:vowels", out=out, **named)
    return Run(out)


def steps_of(run: Run) -> list[dict[str, Any]]:
    return [line for line in run.read_log() if "loss" in line]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    loss=st.sampled_from(LOSSES),
    kl=st.sampled_from([0.0, 0.1]),
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=5),
)
def test_losses_equal_those_of_the_papers_token_by_token(seed: int, loss: str, kl: float, lengths: list[int]) -> None:
    rng = np.random.default_rng(seed)
    config = GrpoConfig(loss=loss, kl_coefficient=kl, clip=0.2, clip_high=0.3, max_answer_tokens=7, rewards=("exact",))
    rewards = rng.integers(0, 3, len(lengths)).astype(float)
    gains = advantages(rewards, config)
    assert gains.tolist() == pytest.approx(advantages_by_answer(rewards.tolist(), loss))
    answers = [
        {name: torch.tensor(rng.normal(-1, 0.3, size)) for name in ("new", "old", "reference")} for size in lengths
    ]
    drawn = [
        Drawn([5, 6], Answer(tuple(range(size)), tuple(one["old"].tolist()), "", False), gain, 1.0, one["reference"])
        for size, one, gain in zip(lengths, answers, gains.tolist(), strict=True)
    ]
    batch = concatenated(drawn)
    counted = {"num_answers": len(lengths), "num_tokens": sum(lengths)}
    batch = RolloutBatch(**{**vars(batch), **counted, "old_logprobs": batch.old_logprobs.double()})
    if not kl:
        batch = RolloutBatch(**{**vars(batch), "reference_logprobs": None})
    exact_old = torch.cat([one["old"] for one in answers])
    is_answer = batch.labels != -100
    batch.old_logprobs[is_answer] = exact_old
    if batch.reference_logprobs is not None:
        kept = batch.reference_logprobs.double()
        kept[is_answer] = torch.cat([one["reference"] for one in answers])
        batch = RolloutBatch(**{**vars(batch), "reference_logprobs": kept})
    new = torch.cat([one["new"] for one in answers]).requires_grad_()
    logprobs = torch.zeros(len(batch.labels), dtype=torch.float64).index_put((is_answer.nonzero()[:, 0],), new)
    found = policy_loss(logprobs, batch, config).sum / count_targets(batch, config)
    (gradient,) = torch.autograd.grad(found, new)

    leaf = new.detach().clone().requires_grad_()
    parts = torch.split(leaf, lengths)
    leaves = [{**one, "new": part} for one, part in zip(answers, parts, strict=True)]
    wanted = policy_loss_by_token(leaves, gains.tolist(), loss, kl, 0.2, 0.3, 7) + 0 * leaf.sum()
    (expected,) = torch.autograd.grad(wanted, leaf)
    assert found.item() == pytest.approx(wanted.item(), abs=1e-6)
    assert gradient.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_run_logs_rewards_and_learns_from_probabilities_of_its_own_engine(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    run = tune(tiny_checkpoint, folder, tmp_path / "run", callbacks=None, kl_coefficient=0.1, validation_fraction=0.25)
    lines = steps_of(run)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert 0 <= line["logprob_difference"] <= 1e-5
        assert line["logprob_difference"] <= line["logprob_difference_max"] <= 1e-4
        assert 0 < line["answer_tokens"] <= 12
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-9)
    assert lines[2]["kl"] > 1e-7
    sample = run.samples.read()[-1]
    assert "Who are you" in sample["prompt"]
    page = run.report_file.read_text()
    assert "Reward" in page
    assert [line["validation_reward"] for line in run.read_log() if "validation_reward" in line] != []


def test_training_in_bf16_learns_from_the_engines_probabilities(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    runs = [tune(tiny_checkpoint, folder, tmp_path / name, precision=name) for name in ("bfloat16", "float32")]
    rounded, exact = map(steps_of, runs)
    assert max(line["logprob_difference"] for line in rounded) <= 1e-5
    assert rounded[0]["loss"] == pytest.approx(exact[0]["loss"], abs=1e-6)
    assert rounded[0]["grad_norm"] == pytest.approx(exact[0]["grad_norm"], rel=0.02)
    assert rounded[0]["grad_norm"] != exact[0]["grad_norm"]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_takes_steps_with_passes_and_adapters(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, loss: str
) -> None:
    overrides = ["lora.rank=2", "grpo.passes=2", f"grpo.loss={loss}"]
    more = {"max_steps": 4, "checkpoint_every": 4, "validate_every": 4, "rollout_temperature": 0.7}
    run = tune(tiny_checkpoint, folder, tmp_path / "run", overrides=overrides, kl_coefficient=0.05, **more)
    lines = steps_of(run)
    assert ["logprob_difference" in line for line in lines] == [True, False, True, False]
    assert lines[0]["reward"] == lines[1]["reward"]
    assert max(line["logprob_difference"] for line in lines if "logprob_difference" in line) <= 1e-5


def test_a_resumed_run_has_the_bytes_of_one_that_never_stopped(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    steps = {"max_steps": 4, "checkpoint_every": 2, "validate_every": 2}
    whole = tune(tiny_checkpoint, folder, tmp_path / "whole", **steps)
    shutil.copytree(whole.path, tmp_path / "killed")
    killed = Run(tmp_path / "killed")
    killed.drop_after(2)
    (killed.path / "latest").write_text("checkpoints/step_00000002\n")
    again = llm.grpo(resume=killed.path, callbacks=[])
    assert weights_of(again) == weights_of(whole.newest())
    assert weights_of(again) != weights_of(whole.checkpoint(2))


def test_passes_of_a_step_give_the_gradient_of_one(tiny_checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    one = tune(tiny_checkpoint, folder, tmp_path / "one", max_steps=2)
    two = tune(tiny_checkpoint, folder, tmp_path / "two", max_steps=2, gradient_accumulation_steps=2)
    for key in ("loss", "grad_norm", "reward", "clip_share"):
        values = [[line[key] for line in steps_of(run)] for run in (one, two)]
        assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-6), key


@pytest.mark.long
def test_two_processes_learn_what_one_learns(tiny_checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    alone = tune(tiny_checkpoint, folder, tmp_path / "one", max_steps=2)
    two = Run(tmp_path / "two")
    words = [tiny_checkpoint, "--data", folder / "prompts.jsonl", "--reward", f"{folder / 'mine.py'}:vowels"]
    words += ["--out", two.path, "--nproc", 2, "max_steps=2", "batch_size=4", "group_size=4", "max_answer_tokens=12"]
    words += ["learning_rate=1e-3", "precision=float32", "device=cpu", "log_every=1"]
    command = [sys.executable, "-m", "llm", "grpo", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for key in ("loss", "grad_norm", "reward", "reward_spread"):
        values = [[line[key] for line in steps_of(run)] for run in (alone, two)]
        assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-6), key


def test_groups_without_spread_are_drawn_again_and_counted(tiny_checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "flat.py").write_text("def flat(completions):\n    return [1.0] * len(completions)\n")
    llm.grpo(
        tiny_checkpoint,
        folder / "prompts.jsonl",
        f"{folder / 'flat.py'}:flat",
        out=tmp_path / "flat",
        callbacks=[JsonlLogger(Run(tmp_path / "flat"))],
        **{"max_steps": 1, "batch_size": 4, "group_size": 2, "max_answer_tokens": 4, "redraws": 2} | SETTINGS,
    )
    [line] = steps_of(Run(tmp_path / "flat"))
    assert (line["zero_spread_share"], line["redrawn_share"], line["grad_norm"], line["loss"]) == (1, 1, 0, 0)


@pytest.mark.parametrize("loss", ["grpo", "dapo"])
def test_a_step_whose_answers_are_all_cut_teaches_nothing_and_says_so(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, loss: str
) -> None:
    with pytest.warns(LLMWarning, match="all answers of a step were cut at 1 tokens.*raise `grpo.max_answer_tokens`"):
        run = tune(tiny_checkpoint, folder, tmp_path / "run", max_steps=1, max_answer_tokens=1, loss=loss, seed=1)
    [line] = steps_of(run)
    assert (line["truncated_share"], line["grad_norm"], line["loss"]) == (1, 0, 0)


def test_a_dry_run_tells_what_a_run_would_take_and_writes_nothing(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [tiny_checkpoint, "--data", folder / "prompts.jsonl", "--reward", f"{folder / 'mine.py'}:vowels"]
    words += ["--reward", "exact", "--reward-weight", 1, "--reward-weight", 0, "--dry-run"]
    words += ["max_steps=20", "passes=2", "batch_size=4", "group_size=4", "max_answer_tokens=8", "device=cpu"]
    done = CliRunner().invoke(app, ["grpo", *map(str, words)])
    assert "line 1: the reward `exact`: the row must have the field `answer`" in str(done.exception)
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Who is {name}?", "answer": name} for name in "ABCDEFGHIJKL"])
    words[2] = tmp_path / "prompts.jsonl"
    done = CliRunner().invoke(app, ["grpo", *map(str, words)], catch_exceptions=False)
    said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[:-1])
    assert said["steps"] == "20 of 4 samples"
    assert said["tokens"].endswith("(3.64 passes over the data)")
    assert "activations" in said["memory"]
    assert "validations" in said["time"]
    assert [file.name for file in tmp_path.iterdir()] == ["prompts.jsonl"]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_engine_and_training_agree_with_chunks_preemption_and_a_prefix_cache(
    tiny_checkpoint: Path, temperature: float
) -> None:
    checkpoint = resolve(tiny_checkpoint)
    model, tokenizer = checkpoint.model("float32", torch.device("cpu")), checkpoint.tokenizer()
    limits = EngineConfig(
        max_model_len=96,
        max_running_requests=16,
        max_batch_tokens=32,
        max_prefill_chunk=8,
        block_size=4,
        kv_cache_memory_bytes=120 * kv_bytes_per_token(model.config, torch.float32),  # of up to 16 × 80 tokens
    )
    engine = RolloutEngine(tokenizer, 96, 16, temperature, limits)
    text = tokenizer.encode("First Citizen: before we proceed any further, hear me speak. " * 2)[:40]
    prompts = [text[:size] for size in (30, 34, 38, 40)]
    for _ in range(2):
        with torch.no_grad():
            model.lm_head.weight.mul_(1.1)
        engine.take_over(model)
        drawn = engine.draw(prompts, [engine.params(4, seed, 40) for seed in range(4)])
        task = GrpoTask(
            model.config,
            GrpoConfig(rewards=("exact",), rollout_temperature=temperature, max_logprob_difference=1e-5),
            tokenizer,
        )
        flat = [Drawn(ids, answer) for ids, answers in zip(prompts, drawn, strict=True) for answer in answers]
        batch = concatenated(flat)
        with torch.no_grad():
            total, count = task._difference(task._logprobs(model, batch), batch)
        assert total / count <= 1e-5
        stats = engine.engine.stats()
        assert stats["num_preemptions"] > 0
        assert stats["prefix_hit_tokens"] > 0


def test_answers_of_a_bad_step_are_dumped_and_read_again(tmp_path: Path) -> None:
    batch = concatenated([Drawn([5, 6], Answer((7, 8), (-1.0, -2.0), "ab", False), 0.5)])
    batch = RolloutBatch(**{**vars(batch), "num_answers": 1, "num_tokens": 2, "sums": {"reward": (1.0, 2.0)}})
    bad = BadStep(3, 0, float("nan"), 1.0, 1.0, 1.0, (4,), (batch,))
    write_dump(tmp_path, bad, None)
    [found] = read_dump(tmp_path)
    assert found.parts[0].labels.tolist() == [-100, 7, 8]
    assert found.parts[0].old_logprobs.tolist() == [0, -1, -2]
    assert (found.parts[0].reference_logprobs, found.parts[0].num_tokens) == (None, 2)


@pytest.mark.parametrize("use_dora", [False, True])
def test_the_kernels_draw_with_adapters_merged_anew_in_each_step(tiny_checkpoint: Path, use_dora: bool) -> None:
    checkpoint = resolve(tiny_checkpoint)
    model, tokenizer = checkpoint.model("float32", torch.device("cpu")), checkpoint.tokenizer()
    adapt(model, LoraConfig(rank=2, use_dora=use_dora))
    engine = RolloutEngine(tokenizer, 64, 4)
    task = GrpoTask(model.config, GrpoConfig(rewards=("exact",), max_logprob_difference=1e-5), tokenizer)
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora" in name:
                    weight.normal_(0, 0.1)
        engine.take_over(model)
        assert engine.engine.runner.backend.startswith("CPU kernels")
        [answers] = engine.draw([[5, 6, 7]], [engine.params(4, 0, 20)])
        drawn.append(answers)
        batch = concatenated([Drawn([5, 6, 7], answer) for answer in answers])
        with torch.no_grad():
            total, count = task._difference(task._logprobs(model, batch), batch)
        assert total / count <= 1e-5
    assert drawn[0] != drawn[1]


def test_draws_do_not_depend_on_what_is_drawn_beside_them(tiny_checkpoint: Path) -> None:
    checkpoint = resolve(tiny_checkpoint)
    engine = RolloutEngine(checkpoint.tokenizer(), 64, 8)
    engine.take_over(checkpoint.model("float32", torch.device("cpu")))
    prompts, params = [[5, 6, 7], [9, 8]], [engine.params(2, seed, 8) for seed in (1, 2)]
    together = engine.draw(prompts, params)
    assert engine.draw(prompts[1:], params[1:])[0] == together[1]


def test_a_difference_past_the_bound_ends_the_run(tiny_checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"got a difference of .*\n.*likely causes"):
        tune(tiny_checkpoint, folder, tmp_path / "run", max_logprob_difference=1e-12)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "x"}], r"line 1: a row must have the field `prompt` or `messages`"),
        ([{"prompt": "a"}, {"messages": [{"role": "user"}]}], r"line 2: message 1"),
        ([{"messages": [{"role": "assistant", "content": "x"}]}], r"line 1: a prompt must end with what is to be"),
        ([{"prompt": "word " * 200}], r"line 1: the prompt has .* tokens, beside an answer of 12"),
    ],
)
def test_wrong_rows_are_named_before_the_run_exists(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, rows: list[dict[str, Any]], words: str
) -> None:
    write_rows(tmp_path / "prompts.jsonl", rows)
    shutil.copy(folder / "mine.py", tmp_path)
    with pytest.raises(DataError, match=words):
        tune(tiny_checkpoint, tmp_path, tmp_path / "run")
    assert not Run(tmp_path / "run").exists


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"overrides": ["generation.top_p=0.9"]}, "drawn from the whole distribution, got `generation.top_p=0.9`"),
        ({"overrides": ["grpo.passes=2"]}, "`training.max_steps` must be a multiple of `grpo.passes`"),
        ({"overrides": ["lora.rank=2", "lora.input_dropout=0.1"]}, "`lora.input_dropout` must be 0"),
        ({"precision": "float8"}, "`training.precision=float8` can't be combined with `data.kind=prompt`"),
    ],
)
def test_settings_that_contradict_each_other(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words.replace("[", r"\[")):
        tune(tiny_checkpoint, folder, tmp_path / "run", **settings)
    with pytest.raises(ConfigError, match="no reward is named"):
        llm.grpo(tiny_checkpoint, folder / "prompts.jsonl", out=tmp_path / "run")


def test_a_reward_that_fails_leaves_the_last_checkpoint(tiny_checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import json, pathlib\nfile = pathlib.Path(__file__).with_name('calls')\n"
        "def vowels(completions):\n    calls = int(file.read_text()) if file.exists() else 0\n"
        "    file.write_text(str(calls + 1))\n    return [1 / (calls < 8) * len(text) for text in completions]\n"
    )
    shutil.copy(folder / "prompts.jsonl", tmp_path)
    with pytest.raises(TrainingError, match=r"prompts.jsonl, line \d: the reward `.*vowels` raised ZeroDivisionError"):
        tune(tiny_checkpoint, tmp_path, tmp_path / "run", checkpoint_every=1, max_steps=6)
    run = Run(tmp_path / "run")
    assert [json.loads((one.training_state / "state.json").read_text())["step"] for one in run.checkpoints()]
    assert llm.LLM(run.path).generate("a", SamplingParams(max_tokens=1)).usage.completion_tokens == 1
