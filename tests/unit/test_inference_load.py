"""From a checkpoint to an engine: what is refused, and a run that trains on meanwhile."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from llm import LLM, registry
from llm.checkpoint import Run, atomic_directory, load_model, write_model
from llm.errors import CheckpointError, ConfigError
from llm.inference import load_async_engine
from llm.models import DecoderModel
from llm.models.layers.norm import RMSNorm
from llm.settings.model import ModelConfig
from llm.settings.run import GenerationConfig
from llm.tokenization import BPETokenizer
from tests.unit.inference_samples import GREEDY


@registry.register("norm", "training_goes_on")
class TrainingGoesOn(RMSNorm):
    """A norm that lets the run take its next step whenever a model with this norm is built."""

    next_steps: ClassVar[list[Callable[[], None]]] = []

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps)
        if self.next_steps:
            self.next_steps.pop()()


def publish(run: Run, tokenizer: BPETokenizer, step: int, keep: int = 9) -> None:
    """Adds a checkpoint whose weights depend on `step` and whose default temperature is `step`."""
    torch.manual_seed(step)
    with torch.device("cpu"):  # a model that is loaded is built on `meta`
        model = DecoderModel(ModelConfig(vocab_size=tokenizer.vocab_size, num_hidden_layers=1, norm="training_goes_on"))
    checkpoint = run.checkpoint(step)
    with atomic_directory(checkpoint.path) as directory:
        write_model(directory, model, tokenizer, GenerationConfig(temperature=float(step)))
    run.publish(checkpoint)
    run.prune(keep)


@pytest.mark.parametrize("keep", [9, 1])
@pytest.mark.parametrize("is_async", [False, True])
def test_an_engine_takes_weights_and_defaults_from_one_checkpoint(
    tmp_path: Path, tiny_tokenizer: BPETokenizer, keep: int, is_async: bool
) -> None:
    run = Run(tmp_path / "run")
    publish(run, tiny_tokenizer, 1)
    TrainingGoesOn.next_steps = [lambda: publish(run, tiny_tokenizer, 2, keep)]
    loaded = load_async_engine(run.path) if is_async else LLM(run.path)
    assert TrainingGoesOn.next_steps == []
    engine = loaded.session.engine
    step = int(engine.generation_defaults["temperature"])
    torch.manual_seed(step)
    expected = DecoderModel(engine.runner.model.config)
    assert torch.equal(engine.runner.model.embed_tokens.weight, expected.embed_tokens.weight)
    assert step == (1 if keep == 9 else 2)  # a removed checkpoint is replaced by the newest one
    assert torch.equal(load_model(run.path).embed_tokens.weight, expected.embed_tokens.weight) == (keep == 1)


def test_a_tokenizer_larger_than_the_model_is_refused(tiny_checkpoint: Path, tmp_path: Path, corpus_text: str) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(tiny_checkpoint, mixed)
    BPETokenizer.train_from_iterator([corpus_text], vocab_size=500, progress=False).save(mixed)
    with pytest.raises(CheckpointError, match="must have at most the model's 384 entries, got 500"):
        LLM(mixed)


def test_a_truncated_or_missing_checkpoint_is_one_clear_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(tiny_checkpoint, torn)
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(
        CheckpointError, match=r"model.safetensors is truncated or not a safetensors file \(\d+ bytes\)"
    ):
        LLM(torn)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        LLM(torn)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        LLM(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds neither a config\.json nor a complete"):
        LLM(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_can_be_chosen(tiny_checkpoint: Path, dtype: str) -> None:
    model = LLM(tiny_checkpoint, dtype)
    output = model.generate("To be", GREEDY)
    assert len(output.token_ids) == 20
    assert str(model.engine.runner.model.lm_head.weight.dtype) == f"torch.{dtype}"
    cosine, _ = model.engine.runner.model.positions.rotation(torch.arange(3))
    assert cosine.dtype == torch.float32


def test_an_unknown_dtype_lists_the_valid_ones(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="`dtype` must be one of auto, float32, bfloat16, float16, got 'int3'"):
        LLM(tiny_checkpoint, "int3")


def test_an_unknown_dtype_of_a_config_is_told_apart_from_a_wrong_argument(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    directory = shutil.copytree(tiny_checkpoint, tmp_path / "a")
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(values | {"dtype": "int8"}))
    with pytest.raises(CheckpointError, match=r"that the weights are 'int8', .*\nhint: `dtype` names"):
        LLM(directory)
    assert LLM(directory, "float32").engine.runner.model.dtype == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_said(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="`device` is 'cuda:1', but PyTorch sees 0 CUDA devices"):
        LLM(tiny_checkpoint, device="cuda:1")
    with pytest.raises(ConfigError, match=r"`device` must be auto, cpu or cuda\[:N\], got 'gpu'"):
        LLM(tiny_checkpoint, device="gpu")
