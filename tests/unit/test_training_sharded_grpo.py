"""Rewards are learnt from in shards as in whole models."""

from pathlib import Path
from typing import Any

import pytest

from llm.checkpoint import Run
from tests.unit.chat_rows import write_rows
from tests.unit.sharded_runs import check_equal, check_resumes, run_of

# Takes 10 to 50 seconds; `make check` leaves it out.
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "mine.py").write_text(
        "def vowels(completions):\n    return [sum(map(text.count, 'aeiou')) / 9 for text in completions]\n"
    )
    return write_rows(folder / "prompts.jsonl", [{"prompt": f"Who are you, {name}?"} for name in "ABCDEFGHIJKLM"])


def given(model: Path, prompts: Path, **more: Any) -> dict[str, Any]:
    rewards = {"model": model, "data": prompts, "reward": f"{prompts.parent / 'mine.py'}:vowels"}
    steps = {"validation_fraction": 0.4, "validate_every": 2, "batch_size": 2, "group_size": 3, "max_answer_tokens": 8}
    return rewards | steps | {"mask_truncated": False, "learning_rate": 1e-3} | more


def check_draws(run: Run, num_draws: int) -> None:
    """In each step that draws, training computes the probabilities that answers were drawn with."""
    lines = [line for line in run.read_log() if "logprob_difference" in line]
    assert len(lines) == num_draws
    assert all(line["logprob_difference"] <= 1e-5 and line["logprob_difference_max"] <= 1e-4 for line in lines)


@pytest.mark.parametrize(
    ("words", "num_draws"), [((), 4), (("lora.rank=3", "grpo.kl_coefficient=0.1", "grpo.passes=2"), 2)]
)
def test_rewards_are_learnt_from_in_shards_as_in_whole_models(
    tiny_checkpoint: Path, prompts: Path, tmp_path: Path, words: tuple[str, ...], num_draws: int
) -> None:
    whole = run_of("grpo", tmp_path / "ddp", "ddp", *words, **given(tiny_checkpoint, prompts))
    shards = run_of("grpo", tmp_path / "fsdp", "fsdp", *words, **given(tiny_checkpoint, prompts))
    check_equal(shards, whole, "reward", "answer_tokens", "validation_reward")
    assert all(line["grad_norm"] > 0.01 for line in shards.read_log() if "grad_norm" in line)
    check_draws(shards, num_draws)
    check_resumes(shards, "grpo", tmp_path)


def test_in_bf16_a_sharded_model_has_the_probabilities_of_its_engine_and_of_a_sharded_start(
    tiny_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    words = ("grpo.kl_coefficient=0.1", "grpo.rollout_temperature=0.7")
    settings = given(tiny_checkpoint, prompts, precision="bfloat16")
    runs = [run_of("grpo", tmp_path / kind, kind, *words, **settings) for kind in ("fsdp", "ddp")]
    first, other = (next(line for line in run.read_log() if "loss" in line) for run in runs)
    # Later steps differ as roundings to bf16 do.
    for name in ("loss", "grad_norm", "reward", "kl"):
        assert first[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), name
    assert first["kl"] == pytest.approx(0, abs=1e-9)
    check_draws(runs[0], 4)
    check_resumes(runs[0], "grpo", tmp_path)
