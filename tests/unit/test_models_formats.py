"""Checkpoints as users bring them: read as transformers reads them, or refused in one sentence."""

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from llm.checkpoint import load_model, resolve, write_model
from llm.errors import CheckpointError, TokenizerError
from llm.export import check_exportable
from llm.info import describe
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.settings.model import ModelConfig
from llm.tokenization import BPETokenizer, load_tokenizer
from tests.compat.opened import LIMIT, distance
from tests.compat.opened import main as open_all
from tests.compat.written import FAMILY_VALUES, SMALL, cases, write


@pytest.mark.parametrize(("name", "values"), list(cases()), ids=[name for name, _ in cases()])
def test_transformers_opens_every_family_and_scaling(name: str, values: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / name, values)
    config = json.loads((tmp_path / name / "config.json").read_text())
    assert config.get("rope_scaling", {}).get("rope_type") == values.get("rope_parameters", {}).get("rope_type")
    assert distance(tmp_path / name) <= LIMIT


def llama(directory: Path, **changes: Any) -> Path:
    """Writes a small Llama, with changes to its `config.json`."""
    write(directory, SMALL | {"model_type": "llama"})
    change(directory, **changes)
    return directory


def change(directory: Path, name: str = "config.json", **changes: Any) -> None:
    file = directory / name
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def logits_of(directory: Path) -> torch.Tensor:
    model = load_model(directory)
    with torch.no_grad():
        return model(torch.arange(20), positions_of((20,)), ForwardContext.for_sequences((20,)))


def their_logits(directory: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits[0]


def message_of(directory: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_model(directory)
    assert error.value.__cause__ is None or "Error" not in str(error.value.__cause__)
    return str(error.value)


def test_a_tied_config_with_another_head_is_untied(tmp_path: Path) -> None:
    directory = llama(tmp_path / "a", tie_word_embeddings=True)
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        ours = logits_of(directory)
    assert (ours - their_logits(directory)).abs().max() <= 1e-4


def test_a_tied_config_with_the_head_alone_opens(tmp_path: Path) -> None:
    directory = llama(tmp_path / "a", tie_word_embeddings=True)
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    assert (logits_of(directory) - their_logits(directory)).abs().max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("row", [None, 0, 100])
def test_a_head_of_another_type_is_compared_by_value(tmp_path: Path, dtype: torch.dtype, row: int | None) -> None:
    directory = llama(tmp_path / "a", tie_word_embeddings=True, dtype="float32")
    tensors = load_file(directory / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].to(dtype)
    tensors["model.embed_tokens.weight"] = head.float()
    if row is not None:
        head[row, 0] += 1
    save_file(tensors | {"lm_head.weight": head}, directory / "model.safetensors", metadata={"format": "pt"})
    with warnings.catch_warnings(action="ignore"):
        model = load_model(directory)
    assert model.config.tie_word_embeddings == (row is None)
    assert torch.equal(model.lm_head.weight, head.float())


def write_raw(file: Path, tensors: dict[str, tuple[str, list[int], int]]) -> None:
    """Writes a safetensors file of zeros, types as named."""
    header, start = {}, 0
    for name, (kind, shape, size) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * start)


@pytest.mark.parametrize(("kind", "bits"), [("F4", 4), ("F6_E2M3", 6), ("I8", 8), ("BOOL", 8), ("C64", 64)])
def test_weights_that_are_no_floating_numbers_are_named(tmp_path: Path, kind: str, bits: int) -> None:
    directory = llama(tmp_path / "a")
    tensors = load_file(directory / "model.safetensors")
    odd = "model.layers.0.mlp.down_proj.weight"
    whole = {name: ("F32", list(tensor.shape), tensor.nbytes) for name, tensor in tensors.items()}
    count = tensors[odd].numel()
    write_raw(directory / "model.safetensors", whole | {odd: (kind, list(tensors[odd].shape), count * bits // 8)})
    for opened in (load_model, describe):
        with pytest.raises(CheckpointError, match=rf"{odd} \({kind}\)"):
            opened(directory)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_silent_config_means_the_weights_own_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    directory = llama(tmp_path / "a", dtype=...)
    tensors = load_file(directory / "model.safetensors")
    mixed = {name: tensor.to(torch.float32 if "norm" in name else dtype) for name, tensor in tensors.items()}
    save_file(mixed, directory / "model.safetensors", metadata={"format": "pt"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    assert next(load_model(directory).parameters()).dtype == theirs.dtype == dtype
    assert f"{str(dtype).removeprefix('torch.')} (its own)" in describe(directory)["weights"]


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2"])
def test_fused_experts_are_read(tmp_path: Path, family: str) -> None:
    write(tmp_path / "a", SMALL | FAMILY_VALUES[family] | {"model_type": family})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    theirs.save_pretrained(tmp_path / "b", save_original_format=False)
    assert any("experts.gate_up_proj" in name for name in load_file(tmp_path / "b" / "model.safetensors"))
    assert torch.equal(logits_of(tmp_path / "b"), logits_of(tmp_path / "a"))


def test_too_many_layers_are_an_error_at_once(tmp_path: Path) -> None:
    directory = llama(tmp_path / "a", num_hidden_layers=9_000)
    assert "config.json says 9000 layers, the weights hold 2" in message_of(directory)
    tensors = load_file(directory / "model.safetensors")
    norm = tensors["model.layers.1.input_layernorm.weight"]
    for last in ("8999", "9" * 5000):
        extra = {f"model.layers.{last}.input_layernorm.weight": norm.clone()}
        save_file(tensors | extra, directory / "model.safetensors", metadata={"format": "pt"})
        assert "config.json says 9000 layers, the weights hold" in message_of(directory)
        assert "and no layer 2" in message_of(directory)
    change(directory, num_hidden_layers=10**12)
    assert "`num_hidden_layers` must be at most 10,000" in message_of(directory)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model_type", ["llama"], "model_type"),
        ("model_type", {"a": 1}, "model_type"),
        ("rope_theta", 0, "rope_theta"),
        ("rope_theta", 1.0, "rope_theta"),
        ("rope_theta", float("inf"), "rope_theta"),
        ("num_key_value_heads", 0, "num_key_value_heads"),
        ("tie_word_embeddings", "no", "tie_word_embeddings"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps"),
        ("hidden_size", 2**62, "hidden_size"),
        ("dtype", ["float32"], "dtype"),
        ("torch_dtype", {"a": 1}, "dtype"),
        ("rope_parameters", {"rope_type": ["yarn"]}, "rope_type"),
        ("rope_parameters", {"rope_type": "longrope", "factor": 2.0}, "short_factor"),
        ("hidden_act", ["silu"], "hidden_act"),
        ("architectures", 3, ""),
    ],
)
def test_wrong_values_are_one_error(tmp_path: Path, key: str, value: Any, said: str) -> None:
    directory = llama(tmp_path / "a", **{key: value})
    if key == "architectures":
        load_model(directory)
        return
    if key == "torch_dtype":
        change(directory, dtype=...)
    with pytest.raises(CheckpointError, match=said):
        load_model(directory)
    with pytest.raises(CheckpointError, match=said):
        describe(directory)


def test_a_deeply_nested_config_is_an_error(tmp_path: Path) -> None:
    directory = llama(tmp_path / "a")
    (directory / "config.json").write_text('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}")
    assert "not valid JSON" in message_of(directory)


def test_a_decoder_step_of_no_layers_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a", SMALL | FAMILY_VALUES["qwen3_moe"] | {"model_type": "qwen3_moe"})
    change(tmp_path / "a", decoder_sparse_step=0)
    assert "config.json" in message_of(tmp_path / "a")


def rename(directory: Path, new: Any) -> None:
    tensors = load_file(directory / "model.safetensors")
    save_file(
        {new(name): tensor for name, tensor in tensors.items()}, directory / "model.safetensors", {"format": "pt"}
    )


def test_an_adapter_is_named(tmp_path: Path) -> None:
    directory = llama(tmp_path / "a")
    rename(directory, lambda name: "base_model.model." + name.replace(".weight", ".lora_A.weight"))
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    message = message_of(directory)
    assert "adapter" in message
    assert "some/base" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_names_without_their_prefix_are_read(tmp_path: Path, family: str) -> None:
    write(tmp_path / "a", SMALL | FAMILY_VALUES[family] | {"model_type": family})
    wanted = logits_of(tmp_path / "a")
    rename(tmp_path / "a", lambda name: name.removeprefix("model.").removeprefix("transformer."))
    assert torch.equal(logits_of(tmp_path / "a"), wanted)


STAND_INS = pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 135\n", "git lfs pull"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><body>Sign in \xff</body></html>", "web page"),
    ],
    ids=["pointer", "page"],
)


@STAND_INS
@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "config.json"]
)
def test_what_lies_in_place_of_weights_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    directory = llama(tmp_path / "a")
    if name.endswith((".bin", ".index.json")):
        (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(content)
    assert said in message_of(directory)


@STAND_INS
@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
)
def test_what_lies_in_place_of_a_tokenizers_file_is_named(
    tmp_path: Path, tiny_tokenizer: BPETokenizer, name: str, content: bytes, said: str
) -> None:
    tiny_tokenizer.save(tmp_path)
    change(tmp_path, "tokenizer_config.json", eos_tokens=...)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=said) as error:
        load_tokenizer(tmp_path)
    assert str(error.value).startswith(str(tmp_path / name))


@STAND_INS
@pytest.mark.parametrize("name", ["tokenizer.model", "a.tiktoken", "a.gguf", "vocab.json", "merges.txt"])
def test_what_lies_in_place_of_a_vocabulary_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    if name in ("vocab.json", "merges.txt"):
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
        (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=said):
        load_tokenizer(tmp_path)
    if name == "a.gguf":
        assert said in message_of(tmp_path / name)


class Odd:
    """No tensor."""


def test_a_pickle_of_more_than_tensors_is_refused_in_our_words(tmp_path: Path) -> None:
    directory = llama(tmp_path / "a")
    (directory / "model.safetensors").unlink()
    torch.save({"model": Odd()}, directory / "pytorch_model.bin")
    message = message_of(directory)
    assert "holds more than tensors" in message
    assert "weights_only" not in message
    assert "Weights only load failed" not in message


def test_a_quantization_scheme_is_named(tmp_path: Path) -> None:
    for quantized, said in (({"quant_method": "awq", "bits": 4}, "awq"), ({"bits": 4}, "an unnamed scheme")):
        directory = llama(tmp_path / said, quantization_config=quantized)
        assert f"quantized by {said}" in message_of(directory)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu", "swish"])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt2"])
def test_activations_equal_transformers(tmp_path: Path, family: str, activation: str) -> None:
    key = "activation_function" if family == "gpt2" else "hidden_act"
    write(tmp_path / "a", SMALL | FAMILY_VALUES[family] | {"model_type": family})
    change(tmp_path / "a", **{key: activation})
    assert (logits_of(tmp_path / "a") - their_logits(tmp_path / "a")).abs().max() <= 1e-4
    model = load_model(tmp_path / "a")
    (tmp_path / "b").mkdir()
    write_model(tmp_path / "b", model, None)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["model_type"] == family
    assert torch.equal(logits_of(tmp_path / "b"), logits_of(tmp_path / "a"))


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, {"temperature": 0.0}),
        ({"eos_token_id": 2}, {"temperature": 0.0}),
        ({"do_sample": None}, {"temperature": 0.0}),
        ({"temperature": 0.6}, {"temperature": 0.6}),
        ({"do_sample": True}, {}),
        ({"do_sample": True, "top_k": 20}, {"top_k": 20}),
        (None, {}),
    ],
)
def test_a_checkpoint_that_does_not_sample_is_greedy(tmp_path: Path, values: Any, wanted: dict[str, float]) -> None:
    directory = llama(tmp_path / "a")
    if values is not None:
        (directory / "generation_config.json").write_text(json.dumps(values))
    assert resolve(directory).generation_defaults() == wanted


def test_the_nearest_family_is_the_one_with_the_fewest_differences() -> None:
    config = ModelConfig(
        vocab_size=50, num_key_value_heads=4, norm="layer_norm", mlp="gelu", mlp_bias=False, position_encoding="learned"
    )
    with pytest.raises(CheckpointError, match="the nearest is gpt2, but for:\n  attention_bias = False"):
        check_exportable(DecoderModel(config))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("value", "wanted"),
    [(257, [257]), ([259, 257], [259, 257]), (None, []), ([], []), ("257", [257]), (["257"], [257]), (257.0, [257])]
    + [(value, None) for value in ("three", True, 2.5, {"id": 257}, [None], [True])],
)
def test_end_tokens_of_a_config_are_read(tmp_path: Path, file: str, value: Any, wanted: list[int] | None) -> None:
    special_tokens = [f"<|{number}|>" for number in range(5)]
    tokenizer = BPETokenizer.train_from_iterator(["a"], vocab_size=261, special_tokens=special_tokens, progress=False)
    assert list(tokenizer.special_tokens.values()) == [256, 257, 258, 259, 260]
    tokenizer.save(tmp_path)
    (tmp_path / file).write_text(json.dumps({"eos_token_id": value}))
    if wanted is None:
        with pytest.raises(TokenizerError, match=rf"{file}: `eos_token_id` must be an id or a list of ids"):
            load_tokenizer(tmp_path)
        return
    assert list(load_tokenizer(tmp_path).eos_ids) == wanted
    if file == "generation_config.json":
        (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 256}))
        assert list(load_tokenizer(tmp_path).eos_ids) == (wanted or [256])


def test_windows_of_qwen2_moe_begin_at_max_window_layers(tmp_path: Path) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
    write(tmp_path / "a", SMALL | FAMILY_VALUES["qwen2_moe"] | {"model_type": "qwen2_moe"} | windows)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["layer_types"] == ["full_attention", "sliding_attention"]
    assert distance(tmp_path / "a") <= LIMIT
    ours = logits_of(tmp_path / "a")
    change(tmp_path / "a", layer_types=..., max_window_layers=1)
    assert torch.equal(logits_of(tmp_path / "a"), ours)
    # Without the list transformers 5 slides in other layers than Qwen 2 does: see the models page of the docs.
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "a")
    assert theirs.layer_types == ["sliding_attention", "full_attention"]
    assert transformers.Qwen2Config(num_hidden_layers=2, **windows).layer_types == config["layer_types"]


def test_a_model_that_differs_or_none_fails_the_comparison(tmp_path: Path) -> None:
    write(tmp_path / "a" / "llama", SMALL | {"model_type": "llama"})
    assert open_all(tmp_path / "a") == 0
    expected = dict(np.load(tmp_path / "a" / "llama" / "expected.npz"))
    np.savez(tmp_path / "a" / "llama" / "expected.npz", **expected | {"logits": expected["logits"] + 1})
    assert open_all(tmp_path / "a") == 1
    (tmp_path / "b").mkdir()
    assert open_all(tmp_path / "b") == 1
