"""Compiled blocks and precisions: what is refused, and that compiled training is the same training."""

import importlib.util
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from llm.checkpoint import Run, load_model, step_of
from llm.data import SyntheticDataModule
from llm.errors import ConfigError
from llm.models import DecoderModel
from llm.settings.model import ExpertsConfig
from llm.training import JsonlLogger, LanguageModelingTask, TrainingEngine
from llm.training.compilation import choose_compilation
from llm.training.float8 import describe_float8, use_float8
from llm.training.launch import launch, resume
from tests.unit.training_samples import MODEL, Notices, check_same_training, config, losses_of, tensors_of


def test_a_missing_compiler_is_named_before_the_run_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler on a CPU, found none of no-such-compiler\nhint: "):
        launch(config(compile="on", device="cpu"), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


GPU, GPU_FLOPS = torch.device("cuda"), 4e14
LARGE = msgspec.structs.replace(MODEL, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, vocab_size=32768)


def choice(steps: int, device: torch.device = GPU, *, packing: bool = False, **model: Any) -> tuple[bool, str]:
    """What `auto` chooses for 8 samples of 16 tokens a step, without the GPU itself."""
    base = msgspec.structs.replace(config(), model=msgspec.structs.replace(LARGE, **model))
    packed = msgspec.structs.replace(base, data=msgspec.structs.replace(base.data, packing=packing))
    return choose_compilation(packed, steps, device, GPU_FLOPS)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_compilation_is_chosen_where_it_pays_back_within_the_run() -> None:
    # 6 × 103 million operations a token, 128 tokens a step: 0.20 ms a step, of which 15 % are saved.
    assert choice(1_800_000) == (False, "compilation takes about 60 s and saves about 53 of 357 s")
    assert choice(2_100_000) == (True, "compilation takes about 60 s and saves about 62 of 416 s")
    assert choice(10**9, packing=True) == (
        False,
        "packed documents differ in length, and each length would be compiled anew",
    )
    experts = ExpertsConfig(num_experts=4, moe_intermediate_size=64)
    assert choice(10**9, mlp="moe", experts=experts) == (False, "experts take other numbers of tokens in each pass")


def test_on_a_cpu_auto_compiles_nothing_and_says_why(tmp_path: Path) -> None:
    run, notices = Run(tmp_path / "run"), Notices()
    reason = "on a CPU, blocks have gradients of their own, which compilation hardly speeds up"
    assert choice(10**9, torch.device("cpu")) == (False, reason)
    launch(config(max_steps=1, device="cpu"), run.path, callbacks=[notices])
    assert notices.said == (f"training.compile=off: {reason}",)
    assert run.read_config().training.compile == "off"


def test_a_resumed_run_compiles_as_it_began(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    launch(config(max_steps=1, device="cpu"), run.path, callbacks=[])
    resume(run.path, overrides=["training.compile=auto", "training.max_steps=2"], callbacks=[])
    assert (run.read_config().training.compile, step_of(run.newest())) == ("off", 2)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"`training.compile` can't change on resume: the run has 'off', got 'on'"):
        resume(run.path, overrides=["compile=True"])


def test_float8_needs_a_gpu_that_has_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"compute capability 8.9 or higher, got cpu\nhint: set .*=bfloat16"):
        launch(config(precision="float8", device="cpu"), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


class InFloat8(LanguageModelingTask):
    """Rounds to float8 as a GPU does, and multiplies in higher precision."""

    def build_model(self) -> DecoderModel:
        model = super().build_model()
        assert isinstance(model, DecoderModel)
        use_float8(model, emulate=True)
        return model


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_training_in_float8_learns_the_same_and_leaves_plain_checkpoints(tmp_path: Path) -> None:
    experts = ExpertsConfig(
        num_experts=16, moe_intermediate_size=16, shared_expert_intermediate_size=32, dense_layers=(0,)
    )
    model = msgspec.structs.replace(MODEL, intermediate_size=32, mlp="moe", experts=experts)
    settings = msgspec.structs.replace(config(precision="bfloat16", device="cpu", max_steps=20), model=model)
    for task in (LanguageModelingTask(model), InFloat8(model)):
        run = Run(tmp_path / type(task).__name__)
        run.create(settings, {})
        TrainingEngine(
            settings,
            task,
            SyntheticDataModule(64, "lm", vocab_size=32, context_length=15),
            run,
            callbacks=[JsonlLogger(run)],
        ).fit()
    in_float8 = InFloat8(model).build_model()
    assert describe_float8(in_float8).startswith("8 of 10 linear layers")
    assert type(in_float8.layers[1].mlp.router) is nn.Linear
    names = ("LanguageModelingTask", "InFloat8")
    losses = [torch.tensor(losses_of(tmp_path / name)) for name in names]
    assert losses[0][-1] < losses[0][0] - 0.05
    assert not torch.equal(losses[0], losses[1])
    assert torch.allclose(losses[0], losses[1], rtol=0.01)
    weights = [tensors_of(Run(tmp_path / name).newest()) for name in names]
    assert {name: (one.dtype, one.shape) for name, one in weights[0].items()} == {
        name: (one.dtype, one.shape) for name, one in weights[1].items()
    }


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_a_model_too_small_for_float8_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs layers whose sizes are multiples of 16, got none"):
        InFloat8(msgspec.structs.replace(MODEL, hidden_size=24)).build_model()


@pytest.mark.slow
def test_compiled_training_is_the_same_training(tmp_path: Path) -> None:
    for compiled in ("off", "on"):
        launch(config(compile=compiled, device="cpu"), tmp_path / compiled)
    check_same_training(tmp_path / "off", tmp_path / "on")
    assert load_model(tmp_path / "on").config == load_model(tmp_path / "off").config
