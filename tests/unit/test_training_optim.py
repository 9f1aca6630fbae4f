"""Optimizers by name, groups of parameters, saved state, and precision."""

import importlib.util
import math
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

from llm.checkpoint import Checkpoint
from llm.errors import CheckpointError, ConfigError
from llm.settings.merge import from_builtins
from llm.settings.run import OptimizerConfig, ParameterGroup, RunConfig
from llm.training import Callback, LanguageModelingTask
from llm.training.launch import launch, resume
from llm.training.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors, set_learning_rate
from llm.training.precision import autocast_dtype
from llm.training.schedules import Schedule
from tests.unit.training_samples import MODEL, config, weights_of


def test_weight_decay_is_for_matrices_only() -> None:
    model = LanguageModelingTask(MODEL).build_model()
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.3))
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decays[parameter] == (0.0 if "norm" in name else 0.3), name


def test_auto_precision_follows_the_device() -> None:
    native = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    assert autocast_dtype("auto", torch.device("cpu")) == (torch.bfloat16 if native else torch.float32)
    assert autocast_dtype("float16", torch.device("cpu")) == torch.float16


def test_a_group_has_rates_of_its_own_at_every_step() -> None:
    model = LanguageModelingTask(MODEL).build_model()
    groups = (
        ParameterGroup(match="embed_tokens", learning_rate=0.004, weight_decay=0.0),
        ParameterGroup(match=r"layers\.1\.", learning_rate=0.0),
        ParameterGroup(match="norm", weight_decay=0.5),
    )
    for name in ("adamw", "muon"):
        settings = OptimizerConfig(name=name, learning_rate=0.01, weight_decay=0.1, groups=groups)  # type: ignore[arg-type]
        optimizer = build_optimizer(model, settings)
        set_learning_rate(optimizer, 0.005)
        found = {p: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
        rates = {key: found[parameter] for key, parameter in model.named_parameters()}
        assert rates["embed_tokens.weight"] == (pytest.approx(0.002), 0.0)
        assert rates["layers.1.mlp.down_proj.weight"] == (0.0, 0.1)
        assert rates["layers.1.norm1.weight"] == (0.0, 0.0)  # the first match counts
        assert rates["layers.0.norm1.weight"] == (0.005, 0.5)


@pytest.mark.parametrize("match", ["lm_head", "("])
def test_a_group_that_matches_nothing_is_refused_with_the_names(match: str) -> None:
    model = LanguageModelingTask(MODEL).build_model()
    with pytest.raises(ConfigError, match=r"optimizer\.groups\[0\]\.match"):
        build_optimizer(model, OptimizerConfig(groups=(ParameterGroup(match=match),)))


needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")


def _stepped(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    set_learning_rate(optimizer, 0.01)
    optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "muon", pytest.param("adamw8bit", marks=needs_torchao)])
def test_saved_state_goes_on_to_the_same_weights(name: str) -> None:
    settings = OptimizerConfig(name=name)  # type: ignore[arg-type]
    torch.manual_seed(0)
    first = LanguageModelingTask(MODEL).build_model()
    optimizer = build_optimizer(first, settings)
    _stepped(first, optimizer, 1)
    second = LanguageModelingTask(MODEL).build_model()
    second.load_state_dict(first.state_dict())
    other = build_optimizer(second, settings)
    saved = {key: value.clone() for key, value in optimizer_tensors(first, optimizer).items()}
    load_optimizer_tensors(second, other, saved)
    _stepped(first, optimizer, 2)
    _stepped(second, other, 2)
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)


def test_state_of_another_optimizer_is_refused() -> None:
    model = LanguageModelingTask(MODEL).build_model()
    adamw, muon = (build_optimizer(model, OptimizerConfig(name=name)) for name in ("adamw", "muon"))  # type: ignore[arg-type]
    _stepped(model, adamw, 0)
    with pytest.raises(CheckpointError, match=r"the saved optimizer state of layers\.0"):
        load_optimizer_tensors(model, muon, optimizer_tensors(model, adamw))


@pytest.mark.long
@pytest.mark.parametrize("schedule", ["linear", "wsd"])
def test_a_muon_run_resumes_to_the_same_bytes(tmp_path: Path, schedule: str) -> None:
    settings = config(checkpoint_every=3)
    optimizer = msgspec.structs.replace(settings.optimizer, name="muon", schedule=schedule, decay_fraction=0.5)
    settings = msgspec.structs.replace(settings, optimizer=optimizer)
    whole = launch(settings, tmp_path / "whole", callbacks=[])

    class Stop(Callback):
        def on_checkpoint(self, step: int, checkpoint: Checkpoint) -> None:
            if step == 3:
                raise InterruptedError

    with pytest.raises(InterruptedError):
        launch(settings, tmp_path / "cut", callbacks=[Stop()])
    assert weights_of(resume(tmp_path / "cut", callbacks=[])) == weights_of(whole)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="torchao is installed")
def test_8_bit_moments_name_the_extra_that_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"llm-oxide\[torchao\]"):
        build_optimizer(LanguageModelingTask(MODEL).build_model(), OptimizerConfig(name="adamw8bit"))


def test_settings_of_an_older_run_mean_what_they_meant() -> None:
    """A `run.json` from before these settings goes on with AdamW, a cosine and its own warm-up."""
    old = {"learning_rate": 1e-3, "min_learning_rate_ratio": 0.1, "warmup_steps": 2, "weight_decay": 0.1}
    loaded = from_builtins({"optimizer": old, "training": {"max_steps": 6}}, RunConfig)
    assert (loaded.optimizer.name, loaded.optimizer.schedule, loaded.optimizer.groups) == ("adamw", "cosine", ())
    schedule = Schedule.of(loaded.optimizer, 6)
    lowest, peak = 1e-4, 1e-3
    cosine = [lowest + 0.5 * (peak - lowest) * (1.0 + math.cos(math.pi * done / 4)) for done in range(4)]
    assert [schedule.rate(step) for step in range(6)] == [peak / 2, peak, *cosine]
