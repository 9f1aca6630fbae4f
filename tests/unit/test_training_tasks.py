"""The tasks of training: labels, bytes, regression, experts."""

import json
import math
from pathlib import Path

import msgspec
import pytest
import torch
import transformers

from llm.checkpoint import load_model
from llm.data import IGNORED_LABEL, TokenBatch
from llm.models import ForwardContext, positions_of
from llm.settings.model import ExpertsConfig, ModelConfig
from llm.settings.run import DataConfig, OptimizerConfig
from llm.training import LanguageModelingTask
from llm.training.launch import launch
from tests.unit.training_samples import MODEL, config, losses_of


def test_ignored_labels_weigh_nothing(tmp_path: Path) -> None:
    task = LanguageModelingTask(MODEL)
    torch.manual_seed(0)
    model = task.build_model()
    ids = torch.randint(0, 32, (12,))
    labels = torch.randint(0, 32, (12,))
    masked = labels.clone()
    masked[5:] = IGNORED_LABEL
    batch = TokenBatch(ids, masked, (12,))
    logits = model(ids, positions_of((12,)), ForwardContext.for_sequences((12,)))
    expected = torch.nn.functional.cross_entropy(logits[:5], labels[:5], reduction="sum")
    assert task.count_targets(batch) == 5
    assert torch.allclose(task.loss_sum(model, batch), expected)


def test_bits_per_byte_counts_the_bytes_behind_tokens(tiny_tokenizer) -> None:
    task = LanguageModelingTask(ModelConfig(vocab_size=384), tiny_tokenizer)
    text = "To be, or not to be — that is the question"
    ids = torch.tensor([0, *tiny_tokenizer.encode(text), *tiny_tokenizer.eos_ids])
    batch = TokenBatch(ids[:-1], ids[1:], (len(ids) - 1,))
    assert task.count_bytes(batch) == len(text.encode())
    assert task.validation_metrics(8 * math.log(2), 4, 2)["bits_per_byte"] == pytest.approx(4.0)


def test_the_regression_task_trains_and_its_checkpoint_opens(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(
        config(task="regression", max_steps=300, batch_size=64, log_every=10),
        data=DataConfig(kind="synthetic", num_samples=512),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=10),
    )
    checkpoint = launch(settings, tmp_path / "run")
    losses = losses_of(tmp_path / "run")
    assert losses[-1] < 0.25 * losses[0]
    assert load_model(checkpoint)(torch.zeros(3, 16)).shape == (3,)


def test_experts_train_with_their_losses_and_open_in_transformers(tmp_path: Path) -> None:
    experts = ExpertsConfig(num_experts=4, moe_intermediate_size=24, load_balancing_weight=0.5, router_z_weight=0.01)
    model = msgspec.structs.replace(MODEL, mlp="moe", experts=experts)
    settings = msgspec.structs.replace(config(max_steps=60, log_every=1), model=model)
    checkpoint = launch(settings, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "expert_load" in line]
    assert len(steps) == 60
    assert len(steps[0]["expert_load"]) == 2
    assert steps[-1]["loss"] < steps[0]["loss"]
    for line in steps:
        assert line["load_balancing"] >= 1.9  # k = 2 when even, and hardly ever below
        assert line["router_z"] > 0
        assert all(sum(layer) == pytest.approx(1, abs=1e-3) for layer in line["expert_load"])
    evenness = [max(max(layer) for layer in line["expert_load"]) for line in (steps[0], steps[-1])]
    assert evenness[1] < max(evenness[0], 0.35)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    assert theirs.config.model_type == "mixtral"
    token_ids = torch.randint(0, 32, (9,))
    ours = load_model(checkpoint)(token_ids, positions_of((9,)), ForwardContext.for_sequences((9,)))
    assert (ours - theirs(token_ids[None]).logits[0]).abs().max() <= 1e-4


def test_experts_train_in_mixed_precision(tmp_path: Path) -> None:
    model = msgspec.structs.replace(MODEL, mlp="moe", experts=ExpertsConfig(num_experts=4, moe_intermediate_size=24))
    for precision in ("float32", "bfloat16"):
        settings = msgspec.structs.replace(config(max_steps=2, device="cpu", precision=precision), model=model)
        launch(settings, tmp_path / precision)
    assert losses_of(tmp_path / "bfloat16") == pytest.approx(losses_of(tmp_path / "float32"), rel=1e-2)
