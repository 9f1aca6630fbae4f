"""Memory that is not enough is said with the settings that save it."""

from pathlib import Path

import msgspec
import pytest
import torch

from llm.errors import TrainingError
from llm.models.costs import estimate_memory
from llm.settings.model import ModelConfig
from llm.training.launch import launch
from llm.training.memory import explains_out_of_memory
from tests.unit.training_samples import config


def test_a_model_that_fits_no_memory_is_said(tmp_path: Path) -> None:
    model = ModelConfig(vocab_size=2**31, hidden_size=2**16, num_hidden_layers=1, max_position_embeddings=16)
    with pytest.raises(TrainingError, match=r"out of memory: .*\nhint: a process needs about 2.25e\+03 TB, "):
        launch(msgspec.structs.replace(config(), model=model), tmp_path / "run")


@pytest.mark.parametrize(
    ("world_size", "sequences", "named"),
    [
        (
            1,
            8,
            ["training.gradient_accumulation_steps=4", "training.gradient_checkpointing=true", "data.context_length=8"],
        ),
        (8, 1, ["training.gradient_checkpointing=true", "data.context_length=8"]),
    ],
)
def test_the_hint_names_settings_and_what_they_need(world_size: int, sequences: int, named: list[str]) -> None:
    settings = config(batch_size=16, gradient_accumulation_steps=2)
    with (
        pytest.raises(TrainingError) as error,
        explains_out_of_memory(settings, torch.float32, world_size),
    ):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
    said = str(error.value)
    assert f"for {sequences} × 16 tokens" in said
    assert [name for name in named if f"`{name}` needs " in said] == named
    wanted = estimate_memory(settings.model, sequences, 16, torch.float32).total
    assert f"needs about {wanted / 1000:.3g} kB" in said


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes$"), explains_out_of_memory(config(), torch.float32, 1):
        raise RuntimeError("shapes")
