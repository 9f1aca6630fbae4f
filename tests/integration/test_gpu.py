"""The same promises on a CUDA device."""

import itertools
from pathlib import Path

import pytest
import torch

from llm import LLM, SamplingParams
from llm.inference import EngineConfig
from llm.inference.runners.cuda_graph import GraphModelRunner
from llm.training.launch import launch, resume
from llm.training.precision import autocast_dtype
from tests.unit.training_samples import config, losses_of

pytestmark = pytest.mark.gpu


def test_training_on_the_device_gives_the_cpu_loss(tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        launch(config(device=device), tmp_path / device)
    assert losses_of(tmp_path / "cpu") == pytest.approx(losses_of(tmp_path / "cuda"), rel=1e-3)


def test_a_longer_run_on_the_device_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    launch(config(device="cuda", max_steps=4), tmp_path / "run")
    assert resume(tmp_path / "run", overrides=["training.max_steps=8"]).path.name == "step_00000008"
    assert len(losses_of(tmp_path / "run")) == 8


def test_auto_precision_is_native_to_the_device() -> None:
    native = torch.cuda.get_device_capability() >= (8, 0)
    assert autocast_dtype("auto", torch.device("cuda")) == (torch.bfloat16 if native else torch.float16)


def test_greedy_answers_equal_the_cpus(tiny_checkpoint: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    prompts = ["To be", "ROMEO:\nWhat news?", "O"]
    on_cpu, on_gpu = (LLM(tiny_checkpoint, "float32", device=device) for device in ("cpu", "cuda"))
    for one, other in zip(on_cpu.generate(prompts, params), on_gpu.generate(prompts, params), strict=True):
        assert one.token_ids == other.token_ids


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_captured_steps_answer_as_the_others(tiny_checkpoint: Path, dtype: str) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=0)
    prompts = ["To be", "ROMEO:\nWhat news?", "O", "Now", "Speak, "]
    config = EngineConfig(max_running_requests=6, enable_cuda_graphs=False)
    plain = LLM(tiny_checkpoint, dtype, device="cuda", config=config)
    graphs = LLM(tiny_checkpoint, dtype, device="cuda", config=EngineConfig(max_running_requests=6))
    runner = graphs.engine.runner
    assert isinstance(runner, GraphModelRunner)
    for one, other in zip(plain.generate(prompts, params), graphs.generate(prompts, params), strict=True):
        pairs = list(zip(one.logprobs or (), other.logprobs or (), strict=True))
        assert len(pairs) == 24
        # In bf16 answers may part at a near-tie; until then they say the same of the same tokens.
        same = list(itertools.takewhile(lambda pair: pair[0].token_id == pair[1].token_id, pairs))
        assert len(same) == 24 or (dtype == "bfloat16" and same)
        for mine, theirs in same:
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-3 if dtype == "float32" else 0.1)
    assert runner.num_replays >= 23
