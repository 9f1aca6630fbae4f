"""Preferences are learnt in shards as in whole models."""

import math
from pathlib import Path

import numpy as np
import pytest

from tests.unit.chat_rows import write_rows
from tests.unit.preference_rows import pair
from tests.unit.sharded_runs import NUM_ROWS, PASSES, check_equal, check_resumes, run_of

# Takes 10 to 50 seconds; `make check` leaves it out.
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", [pair(number) for number in range(NUM_ROWS)])


# Without adapters, a sharded reference computes its log-probabilities first; with them, they are off for a pass.
@pytest.mark.parametrize("words", [("preference.loss=dpo",), ("preference.loss=kto",), ("lora.rank=3",)], ids=str)
def test_preferences_are_learnt_in_shards_as_in_whole_models(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    given = {"model": tiny_checkpoint, "data": pairs, "chat_template": "chatml"} | PASSES
    whole = run_of("dpo", tmp_path / "ddp", "ddp", *words, **given)
    shards = run_of("dpo", tmp_path / "fsdp", "fsdp", *words, **given)
    check_equal(shards, whole, "rewards/chosen", "rewards/rejected", "validation_rewards/chosen")
    references = [sorted(run.data.glob("reference-*.npy")) for run in (shards, whole)]
    assert len(references[0]) == len(references[1])
    assert bool(references[0]) == ("lora.rank=3" not in words)
    for one, other in zip(*references, strict=True):
        assert one.name == other.name
        assert np.allclose(np.load(one), np.load(other), atol=1e-4)
    check_resumes(shards, "dpo", tmp_path)


@pytest.mark.parametrize("words", [(), ("lora.rank=3", "lora.use_dora=true")], ids=str)
def test_in_bf16_a_sharded_model_begins_near_its_reference(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    given = {"model": tiny_checkpoint, "data": pairs, "chat_template": "chatml", "precision": "bfloat16"} | PASSES
    run = run_of("dpo", tmp_path / "run", "fsdp", *words, **given)
    losses = [line["loss"] for line in run.read_log() if "loss" in line]
    # Training adds up in another order than a pass without gradients, which bf16 rounds otherwise.
    assert losses[0] == pytest.approx(math.log(2), abs=0.02)
    assert losses[-1] != losses[0]
    check_resumes(run, "dpo", tmp_path)


@pytest.mark.parametrize("loss", ["ipo", "simpo", "orpo"])
def test_other_losses_on_pairs_are_learnt_in_shards(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path, loss: str
) -> None:
    given = {"model": tiny_checkpoint, "data": pairs, "chat_template": "chatml", "loss": loss} | PASSES
    alone = run_of("dpo", tmp_path / "one", None, **given)
    check_equal(run_of("dpo", tmp_path / "fsdp", "fsdp", **given), alone, "rewards/chosen")


def test_adapters_learn_from_all_answers_of_a_batch_in_shards(
    tiny_checkpoint: Path, pairs: Path, tmp_path: Path
) -> None:
    given = {"model": tiny_checkpoint, "data": pairs, "chat_template": "chatml", "loss": "kto"} | PASSES
    alone = run_of("dpo", tmp_path / "one", None, "lora.rank=3", **given)
    check_equal(run_of("dpo", tmp_path / "fsdp", "fsdp", "lora.rank=3", **given), alone, "divergence")


def test_a_reward_model_is_learnt_in_shards(tiny_checkpoint: Path, pairs: Path, tmp_path: Path) -> None:
    given = {"model": tiny_checkpoint, "data": pairs, "chat_template": "chatml"} | PASSES
    whole = run_of("reward", tmp_path / "ddp", "ddp", **given)
    shards = run_of("reward", tmp_path / "fsdp", "fsdp", **given)
    check_equal(shards, whole, "validation_accuracy")
    check_resumes(shards, "reward", tmp_path)
