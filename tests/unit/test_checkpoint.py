"""Checkpoints on disk: whole or absent, and open in transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from llm.checkpoint import (
    COMPLETE,
    Run,
    atomic_directory,
    load_model,
    load_tensors,
    resolve,
    save_tensors,
    write_atomically,
    write_model,
)
from llm.errors import CheckpointError, ConfigError, FileError
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.settings.model import ModelConfig
from llm.settings.run import GenerationConfig
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
    model = DecoderModel(ModelConfig(vocab_size=50, norm="layer_norm_no_bias", tie_word_embeddings=False))
    with atomic_directory(tmp_path / "a") as directory:
        write_model(directory, model, None)
    back = load_model(tmp_path / "a")
    assert isinstance(back, DecoderModel)
    assert back.config.norm == "layer_norm_no_bias"
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in model.state_dict().items())
    assert json.loads((tmp_path / "a" / "config.json").read_text())["model_type"] == "llm_oxide"


def test_a_failed_write_leaves_the_old_directory_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    with atomic_directory(target) as directory:
        (directory / "file").write_text("old")
    with (
        pytest.raises(FileError, match=r"checkpoint can.t be written: No such file"),
        atomic_directory(target) as directory,
    ):
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
    newest = resolve(tmp_path)
    assert newest.path.name == "step_00000010"
    assert resolve(newest) is newest
    assert Run(tmp_path / "nothing").newest() is None


def test_generation_defaults_come_from_the_checkpoint(tmp_path: Path, tiny_tokenizer) -> None:
    model = DecoderModel(ModelConfig(vocab_size=tiny_tokenizer.vocab_size))
    with atomic_directory(tmp_path / "a") as directory:
        write_model(directory, model, tiny_tokenizer, GenerationConfig(temperature=0.7, top_k=50))
    assert resolve(tmp_path / "a").generation_defaults() == {"temperature": 0.7, "top_k": 50}


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_broken_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(tmp_path)


def small_checkpoint(directory: Path) -> Path:
    torch.manual_seed(2)
    with atomic_directory(directory) as temporary:
        write_model(temporary, DecoderModel(ModelConfig(vocab_size=50, num_hidden_layers=2)), None)
    return directory


class Disguise:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('code ran')",)


def test_a_pickle_in_disguise_is_refused(tmp_path: Path) -> None:
    directory = small_checkpoint(tmp_path / "a")
    weights = directory / "model.safetensors"
    weights.unlink()
    torch.save({"model.norm.weight": torch.ones(3), "more": Disguise()}, directory / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match="holds more than tensors, exec among them, and opening that could run code"
    ):
        load_model(directory)
    (directory / "pytorch_model.bin").rename(weights)
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        load_model(directory)


@pytest.mark.parametrize("kept", [0, 5, 200, -7])
def test_truncated_weights_are_said_to_be(tmp_path: Path, kept: int) -> None:
    directory = small_checkpoint(tmp_path / "a")
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        load_model(directory)
    tensors = {"model.norm.weight": torch.ones(3)}
    weights.unlink()
    torch.save(tensors, directory / "model.pt")
    pickled = (directory / "model.pt").read_bytes()
    (directory / "model.pt").write_bytes(pickled[:kept])
    with pytest.raises(CheckpointError, match=r"model\.pt (is truncated|holds more)"):
        load_model(directory)


def test_weights_that_are_no_numbers_are_all_named(tmp_path: Path) -> None:
    directory = small_checkpoint(tmp_path / "a")
    weights = directory / "model.safetensors"
    tensors = load_tensors(weights)
    tensors["model.layers.1.self_attn.k_proj.weight"][3, 4] = float("nan")
    tensors["model.norm.weight"][0] = float("inf")
    save_tensors(weights, tensors)
    with pytest.raises(CheckpointError) as caught:
        load_model(directory)
    assert "model.layers.1.self_attn.k_proj.weight" in str(caught.value)
    assert "model.norm.weight" in str(caught.value)
    tensors = {name: torch.full_like(tensor, 1e5) for name, tensor in tensors.items()}
    save_tensors(weights, tensors)
    with pytest.raises(CheckpointError, match=r"finite in torch\.float16"):
        load_model(directory, "float16")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    directory = small_checkpoint(tmp_path / "a")
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors", "lost": "model-2.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors is missing"):
        load_model(directory)
    index["weight_map"]["lost"] = "../elsewhere.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="must name files beside it"):
        load_model(directory)
    index["weight_map"]["lost"] = "model-00001-of-00002.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks what .* promises: lost"):
        load_model(directory)


@pytest.mark.long
def test_loading_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    config = ModelConfig(vocab_size=8000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=10, head_dim=64)
    with atomic_directory(tmp_path / "a") as temporary:
        model = DecoderModel(config)
        weights = 4 * model.num_parameters()
        write_model(temporary, model, None)
    script = (
        "import resource, sys\n"
        "from llm.checkpoint import load_model\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "model = load_model(sys.argv[1])\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a")], capture_output=True, text=True, check=True
    )
    assert weights > 500e6
    assert int(done.stdout) <= 1.1 * weights + 80e6


def test_a_checkpoint_is_a_path_that_transformers_opens(tiny_checkpoint: Path) -> None:
    checkpoint = resolve(tiny_checkpoint)
    assert Path(checkpoint) == tiny_checkpoint
    assert str(checkpoint) == str(tiny_checkpoint)
    assert resolve(checkpoint) == checkpoint
    theirs = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    assert torch.equal(theirs.model.embed_tokens.weight, checkpoint.model().embed_tokens.weight)


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(ConfigError), run.locked():
        raise ConfigError("refused")
    assert not run.path.exists()
    run.path.mkdir()
    with pytest.raises(ConfigError), run.locked():
        raise ConfigError("refused")
    assert run.path.exists()
    kept = Run(tmp_path / "kept")
    with kept.locked():
        kept.log_file.write_text("a line")
    assert kept.log_file.read_text() == "a line"


def test_only_one_process_trains_in_a_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with run.locked(), pytest.raises(ConfigError, match=r"process \d+ is training in .*\nhint: wait"), run.locked():
        pass
    with run.locked():
        pass
