"""Checkpoints for other programs: what they read is what we have."""

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import transformers
from torch.nn.modules.module import register_module_module_registration_hook

from llm.checkpoint import Run, atomic_directory, load_model, resolve, write_model
from llm.errors import CheckpointError, InvalidArgumentError
from llm.export import export
from llm.info import describe
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.settings.model import ExpertsConfig, ModelConfig
from llm.settings.run import GenerationConfig
from llm.tokenization import BPETokenizer, encode_chat, load_tokenizer

# Takes 10 to 50 seconds; `make check` leaves it out.
pytestmark = pytest.mark.long

SMALL: dict[str, Any] = {"vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


def checkpoint(directory: Path, tokenizer: BPETokenizer, **fields: Any) -> Path:
    torch.manual_seed(4)
    with atomic_directory(directory) as temporary:
        write_model(temporary, DecoderModel(ModelConfig(initializer_range=0.1, **SMALL | fields)), tokenizer)
    return directory


@torch.no_grad()
def logits_of(path: Path, token_ids: torch.Tensor) -> torch.Tensor:
    model = load_model(path, "float32")
    length = len(token_ids)
    logits: torch.Tensor = model(token_ids, positions_of((length,)), ForwardContext.for_sequences((length,)))
    return logits


TOKEN_IDS = torch.arange(3, 40)


def test_a_gguf_file_becomes_a_directory_that_transformers_opens(tmp_path: Path, tiny_tokenizer: BPETokenizer) -> None:
    source = checkpoint(tmp_path / "a", tiny_tokenizer)
    file = export(source, tmp_path / "a.gguf", "gguf", quantization="f32")
    directory = export(file, tmp_path / "b", "hf", dtype="bfloat16")
    assert torch.equal(logits_of(file, TOKEN_IDS), logits_of(source, TOKEN_IDS))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    rounded = {name: tensor.bfloat16().float() for name, tensor in load_model(source).state_dict().items()}
    model = load_model(source)
    model.load_state_dict(rounded)
    with torch.no_grad():
        wanted = model(TOKEN_IDS, positions_of((37,)), ForwardContext.for_sequences((37,)))
        assert (theirs(TOKEN_IDS[None]).logits[0] - wanted).abs().max() <= 1e-4
    messages = [{"role": "user", "content": "What news?"}]
    ids = [encode_chat(load_tokenizer(path), messages) for path in (source, file, directory)]
    assert ids[0] == ids[1] == ids[2]


@pytest.mark.parametrize("quantization", ["f16", "bf16", "q8_0", "q4_0"])
def test_quantised_files_stay_close(tmp_path: Path, tiny_tokenizer: BPETokenizer, quantization: str) -> None:
    source = checkpoint(tmp_path / "a", tiny_tokenizer)
    file = export(source, tmp_path / "a.gguf", "gguf", quantization=quantization)
    wanted, got = logits_of(source, TOKEN_IDS), logits_of(file, TOKEN_IDS)
    error = float((got - wanted).std() / wanted.std())
    assert 0 < error < {"f16": 2e-3, "bf16": 2e-2, "q8_0": 3e-2, "q4_0": 0.4}[quantization]


@pytest.mark.parametrize(
    "fields",
    [{}, {"sliding_window": 8}, {"position_encoding": "learned", "mlp": "gelu", "norm": "layer_norm",
      "num_key_value_heads": 4, "attention_bias": True, "attention_output_bias": True}],
    ids=["llama", "mistral", "gpt2"],
)  # fmt: skip
def test_onnx_runtime_gives_the_same_logits(
    tmp_path: Path, tiny_tokenizer: BPETokenizer, fields: dict[str, Any]
) -> None:
    source = checkpoint(tmp_path / "a", tiny_tokenizer, **fields)
    file = export(source, tmp_path / "a.onnx", "onnx")
    session = onnxruntime.InferenceSession(file)
    for length in (3, 8, 37):
        [logits] = session.run(None, {"input_ids": TOKEN_IDS[None, :length].numpy()})
        assert (torch.tensor(logits[0]) - logits_of(source, TOKEN_IDS[:length])).abs().max() <= 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_without_biases_becomes_gpt2_with_zeros(
    tmp_path: Path, tiny_tokenizer: BPETokenizer, tied: bool
) -> None:
    fields = {"norm": "layer_norm_no_bias", "mlp": "gelu", "mlp_bias": False, "position_encoding": "learned"}
    fields |= {"num_key_value_heads": 4, "tie_word_embeddings": tied, "dropout": 0.1, "attention_dropout": 0.1}
    source = checkpoint(tmp_path / "source", tiny_tokenizer, **fields)
    written = export(source, tmp_path / "gpt2")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32).eval()
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    biases = [parameter for name, parameter in theirs.named_parameters() if name.endswith("bias")]
    assert len(biases) == 2 * 6 + 1
    assert not any(bias.any() for bias in biases)
    ids = torch.arange(20) * 7 % 384
    assert torch.equal(logits_of(written, ids), logits_of(source, ids))
    with torch.no_grad():
        assert (theirs(ids[None]).logits[0] - logits_of(source, ids)).abs().max() < 1e-4


def test_what_cannot_be_exported_is_named(tmp_path: Path, tiny_tokenizer: BPETokenizer) -> None:
    mix = checkpoint(tmp_path / "mix", tiny_tokenizer, qk_norm=True, norm="layer_norm")
    with pytest.raises(CheckpointError, match=r"the nearest is \w+, but for:\n  .*norm = 'layer_norm'"):
        export(mix, tmp_path / "out")
    experts = checkpoint(tmp_path / "moe", tiny_tokenizer, mlp="moe", experts=ExpertsConfig(moe_intermediate_size=96))
    with pytest.raises(CheckpointError, match="ONNX export does not support mixtures of experts"):
        export(experts, tmp_path / "out", "onnx")
    with pytest.raises(InvalidArgumentError, match="`out` must be new"):
        export(experts, mix)
    with pytest.raises(InvalidArgumentError, match=r"`quantization` must be one of .*q4_0, got 'q3'"):
        export(experts, tmp_path / "out", "gguf", quantization="q3")
    assert {entry.name for entry in tmp_path.iterdir()} == {"mix", "moe"}


def publish(run: Run, tokenizer: BPETokenizer, step: int, keep: int) -> None:
    """Adds a checkpoint with `step` layers and the temperature `step`."""
    with torch.device("cpu"), atomic_directory(run.checkpoint(step).path) as directory:
        model = DecoderModel(ModelConfig(**SMALL | {"num_hidden_layers": step}))
        write_model(directory, model, tokenizer, GenerationConfig(temperature=float(step)))
    run.prune(keep)


@pytest.mark.parametrize(("keep", "exported_step"), [(9, 1), (1, 2)])
def test_export_and_info_read_one_checkpoint_of_a_run(
    tmp_path: Path, tiny_tokenizer: BPETokenizer, keep: int, exported_step: int
) -> None:
    run = Run(tmp_path / "run")
    publish(run, tiny_tokenizer, 1, keep)
    next_steps = [2]

    def train_on(*_: object) -> None:
        if next_steps:
            publish(run, tiny_tokenizer, next_steps.pop(), keep)

    with register_module_module_registration_hook(train_on):  # the run trains on while the model is built
        exported = resolve(export(run, tmp_path / "out"))
    assert next_steps == []
    assert exported.config.num_hidden_layers == exported_step
    assert exported.generation_defaults() == {"temperature": float(exported_step)}
    facts = describe(run)
    assert facts["checkpoint"] == str(run.checkpoint(2))
    assert facts["layers"].startswith("2 × 64 wide")
