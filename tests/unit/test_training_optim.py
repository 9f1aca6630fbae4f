"""Learning rates, weight decay and precision."""

from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm.settings.run import OptimizerConfig
from llm.training import LanguageModelingTask
from llm.training.launch import launch
from llm.training.optim import build_optimizer
from llm.training.precision import autocast_dtype
from llm.training.schedules import warmup_cosine
from tests.unit.training_samples import MODEL, config


@given(st.integers(0, 50), st.integers(1, 60), st.floats(0, 1), st.floats(1e-5, 1e-1))
def test_schedule_warms_up_to_the_peak_and_stays_within_bounds(
    warmup: int, total: int, ratio: float, peak: float
) -> None:
    settings = OptimizerConfig(learning_rate=peak, warmup_steps=warmup, min_learning_rate_ratio=ratio)
    rates = [warmup_cosine(step, total, settings) for step in range(total + 5)]
    assert all(0 <= rate <= peak * (1 + 1e-9) for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    decay = rates[warmup:]
    assert decay == sorted(decay, reverse=True)
    if total > warmup:
        assert rates[warmup] == pytest.approx(peak)
        assert rates[total] == pytest.approx(peak * ratio, abs=1e-12)


@pytest.mark.long
def test_a_warmup_as_long_as_the_schedule_divides_by_nothing(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(config(), optimizer=OptimizerConfig(warmup_steps=6))
    launch(settings, tmp_path / "run", callbacks=[])
    assert warmup_cosine(6, 6, settings.optimizer) == settings.optimizer.learning_rate


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
