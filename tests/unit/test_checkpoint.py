"""Checkpoints on disk: whole or absent, and open in transformers."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from llm.checkpoint import (
    COMPLETE,
    atomic_directory,
    generation_defaults,
    load_model,
    newest_checkpoint,
    resolve,
    write_atomically,
    write_model,
)
from llm.config import GenerationConfig
from llm.errors import CheckpointError
from llm.model_config import ModelConfig
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.tokenization import load_tokenizer


def test_a_checkpoint_opens_in_transformers_with_equal_ids_and_logits(tiny_checkpoint: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_checkpoint)
    text = "First Citizen:\nBefore we proceed any further, hear me speak. 1234 – é ü 漢字"
    ids = load_tokenizer(tiny_checkpoint).encode(text)
    assert their_tokenizer(text)["input_ids"] == ids
    model = load_model(tiny_checkpoint)
    with torch.no_grad():
        ours = model(torch.tensor(ids), positions_of((len(ids),)), ForwardContext.for_sequences((len(ids),)))
        wanted = theirs(torch.tensor([ids])).logits[0]
    assert (ours - wanted).abs().max() <= 1e-4
    messages = [{"role": "user", "content": "What news?"}]
    assert their_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "ROMEO:\nWhat news?\n\nJULIET:\n"
    )


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = DecoderModel(ModelConfig(vocab_size=50, norm="layer_norm", tie_word_embeddings=False))
    with atomic_directory(tmp_path / "a") as directory:
        write_model(directory, model, None)
    back = load_model(tmp_path / "a")
    assert isinstance(back, DecoderModel)
    assert back.config.norm == "layer_norm"
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in model.state_dict().items())
    assert json.loads((tmp_path / "a" / "config.json").read_text())["model_type"] == "llm_oxide"


def test_a_failed_write_leaves_the_old_directory_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    with atomic_directory(target) as directory:
        (directory / "file").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_directory(target) as directory:
        (directory / "file").write_text((directory / "missing").read_text())
    assert (target / "file").read_text() == "old"
    assert (target / COMPLETE).is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_files_are_replaced_in_one_step(tmp_path: Path) -> None:
    file = tmp_path / "latest"
    write_atomically(file, "one")
    write_atomically(file, "two")
    assert file.read_text() == "two"
    assert list(tmp_path.iterdir()) == [file]


def test_a_run_means_its_newest_complete_checkpoint(tmp_path: Path) -> None:
    for step in (5, 10, 20):
        directory = tmp_path / "checkpoints" / f"step_{step:08d}"
        directory.mkdir(parents=True)
        (directory / "config.json").write_text("{}")
        if step < 20:
            (directory / COMPLETE).write_text("")
    assert resolve(tmp_path).name == "step_00000010"
    assert newest_checkpoint(tmp_path / "nothing") is None


def test_generation_defaults_come_from_the_checkpoint(tmp_path: Path, tiny_tokenizer) -> None:
    model = DecoderModel(ModelConfig(vocab_size=tiny_tokenizer.vocab_size))
    with atomic_directory(tmp_path / "a") as directory:
        write_model(directory, model, tiny_tokenizer, GenerationConfig(temperature=0.7, top_k=50))
    assert generation_defaults(tmp_path / "a") == {"temperature": 0.7, "top_k": 50}


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_broken_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(tmp_path)
