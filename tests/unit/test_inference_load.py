"""Engines loaded from a run that trains on meanwhile."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from llm import LLM, registry
from llm.checkpoint import atomic_directory, load_model, write_model
from llm.inference import load_async_engine
from llm.models import DecoderModel
from llm.models.layers.norm import RMSNorm
from llm.settings.model import ModelConfig
from llm.settings.run import GenerationConfig
from llm.tokenization import BPETokenizer
from llm.training import RunDirectory


@registry.register("norm", "training_goes_on")
class TrainingGoesOn(RMSNorm):
    """A norm that lets the run take its next step whenever a model with this norm is built."""

    next_steps: ClassVar[list[Callable[[], None]]] = []

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps)
        if self.next_steps:
            self.next_steps.pop()()


def publish(run: RunDirectory, tokenizer: BPETokenizer, step: int, keep: int = 9) -> None:
    """Adds a checkpoint whose weights depend on `step` and whose default temperature is `step`."""
    torch.manual_seed(step)
    with torch.device("cpu"):  # a model that is loaded is built on `meta`
        model = DecoderModel(ModelConfig(vocab_size=tokenizer.vocab_size, num_hidden_layers=1, norm="training_goes_on"))
    path = run.checkpoint_path(step)
    with atomic_directory(path) as directory:
        write_model(directory, model, tokenizer, GenerationConfig(temperature=float(step)))
    run.publish(path, keep)


@pytest.mark.parametrize("keep", [9, 1])
@pytest.mark.parametrize("is_async", [False, True])
def test_an_engine_takes_weights_and_defaults_from_one_checkpoint(
    tmp_path: Path, tiny_tokenizer: BPETokenizer, keep: int, is_async: bool
) -> None:
    run = RunDirectory(tmp_path / "run")
    publish(run, tiny_tokenizer, 1)
    TrainingGoesOn.next_steps = [lambda: publish(run, tiny_tokenizer, 2, keep)]
    loaded = load_async_engine(run.path) if is_async else LLM(run.path)
    assert TrainingGoesOn.next_steps == []
    engine = loaded._engine if is_async else loaded.engine
    step = int(loaded.default_params["temperature"])
    torch.manual_seed(step)
    expected = DecoderModel(engine.runner.model.config)
    assert torch.equal(engine.runner.model.embed_tokens.weight, expected.embed_tokens.weight)
    assert step == (1 if keep == 9 else 2)  # a removed checkpoint is replaced by the newest one
    assert torch.equal(load_model(run.path).embed_tokens.weight, expected.embed_tokens.weight) == (keep == 1)
