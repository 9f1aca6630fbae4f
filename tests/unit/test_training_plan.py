"""What a run chooses for itself."""

import json
from pathlib import Path

import msgspec
import pytest
import torch

from llm.checkpoint import Run
from llm.errors import ConfigError
from llm.models.costs import num_parameters
from llm.settings.merge import given_settings, load_run_config
from llm.settings.run import RunConfig, TrainingConfig
from llm.training.launch import launch, resume
from llm.training.plan import Plan

TEXT = "".join(f"{name}:\nThe {idx} {name} speaks.\n\n" for idx in range(300) for name in ("KING", "FOOL"))
TWO_CORES = 1.2e11


def planned(num_bytes: float, *overrides: str, flops: float = TWO_CORES, is_gpu: bool = False) -> RunConfig:
    config = load_run_config(overrides=overrides, environ={})
    plan = Plan(given_settings(None, overrides), int(num_bytes), flops, is_gpu)
    config = plan.before_tokenizing(config)
    model = msgspec.structs.replace(config.model, vocab_size=config.tokenizer.vocab_size)
    return plan.after_tokenizing(msgspec.structs.replace(config, model=model), round(num_bytes / 2.6))


def operations(config: RunConfig) -> float:
    steps = config.training.max_steps or 0
    return 6.0 * num_parameters(config.model) * steps * config.training.batch_size * config.context_length


@pytest.mark.parametrize("num_bytes", [1e5, 1e6, 1e7, 1e8, 1e9, 1e10])
def test_a_plan_takes_the_time_that_the_text_is_worth(num_bytes: float) -> None:
    config = planned(num_bytes)
    expected_s = 480 * (num_bytes / 1e6) ** (1 / 3)
    assert operations(config) / TWO_CORES < 1.5 * expected_s
    if num_bytes >= 1e6:  # shorter texts teach no more in that time
        assert operations(config) / TWO_CORES > 0.25 * expected_s
    steps, warmup = config.training.max_steps or 0, config.optimizer.warmup_steps
    assert steps >= 100
    assert warmup is None
    tokens = steps * config.training.batch_size * config.context_length
    assert tokens <= 5.2 * num_bytes / 2.6
    assert config.tokenizer.vocab_size * config.model.hidden_size < num_parameters(config.model)
    assert config.training.validate_every * 9 <= steps


def test_more_text_gets_a_larger_vocabulary_batch_and_run() -> None:
    plans = [planned(num_bytes) for num_bytes in (1e5, 1e6, 1e8, 1e10)]
    for figure in (
        [plan.tokenizer.vocab_size for plan in plans],
        [plan.training.batch_size * plan.context_length for plan in plans],
        [plan.training.max_steps for plan in plans],
    ):
        assert figure == sorted(figure)  # type: ignore[type-var]
        assert figure[0] < figure[-1]  # type: ignore[operator]


def test_what_is_given_stays() -> None:
    given = planned(
        1e6,
        "tokenizer.vocab_size=700",
        "model.hidden_size=64",
        "optimizer.name=adamw",
        "optimizer.schedule=wsd",
        "training.max_steps=7",
        "training.batch_size=3",
        "model.max_position_embeddings=64",
    )
    assert (given.tokenizer.vocab_size, given.model.hidden_size, given.model.num_hidden_layers) == (700, 64, 4)
    assert (given.optimizer.name, given.optimizer.schedule) == ("adamw", "wsd")
    assert given.optimizer.min_learning_rate_ratio == 0.1
    assert (given.training.max_steps, given.training.batch_size, given.context_length) == (7, 3, 64)


@pytest.mark.parametrize("batch_size", [65, 96, 127, 1000])
def test_any_batch_is_taken_in_passes_that_divide_it(batch_size: int) -> None:
    training = planned(1.1e6, f"training.batch_size={batch_size}").training
    assert (training.batch_size, training.batch_size % training.gradient_accumulation_steps) == (batch_size, 0)


def test_a_size_sets_the_shape_on_any_machine() -> None:
    plans = [planned(1e8, "training.size=15M", flops=flops) for flops in (1e10, 1e14)]
    assert plans[0] == plans[1]
    assert num_parameters(plans[0].model) == pytest.approx(15e6, rel=0.1)


def test_a_size_and_a_shape_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match=r"`training\.size` sets the model's shape, so none of model\.hidden_size"):
        planned(1e6, "training.size=1M", "model.hidden_size=64")


def test_a_vocabulary_is_chosen_for_a_tokenizer_that_is_to_be_trained() -> None:
    assert planned(1e6).tokenizer.vocab_size == 1024
    assert planned(1e6, "tokenizer.kind=character").tokenizer.vocab_size == 4096


def test_settings_given_in_python_are_not_touched_but_for_a_size() -> None:
    assert "optimizer.learning_rate" in given_settings(RunConfig(), [])
    sized = RunConfig(training=TrainingConfig(size="1M", batch_size=5))
    assert given_settings(sized, ["optimizer.name=adamw"]) == {
        "training.size",
        "training.batch_size",
        "optimizer.name",
    }


def test_a_run_says_and_stores_what_it_chose(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    overrides = [("data.paths", [str(tmp_path / "text.txt")]), "training.max_steps=2", "training.size=100k"]
    run = Run(tmp_path / "run")
    launch(None, run.path, overrides=overrides, callbacks=[])
    stored = json.loads((run.path / "run.json").read_text())
    assert "muon" in json.dumps(stored)
    config = run.read_config()
    assert config.optimizer.name == "muon"
    assert config.model.vocab_size == config.tokenizer.vocab_size == 512
    torch.manual_seed(1)
    resume(run.path, overrides=["training.max_steps=3"], callbacks=[])
    after = run.read_config()
    assert (after.model, after.optimizer) == (config.model, config.optimizer)
