"""Quantised checkpoints that lack a matrix, or have it under another name: opened, or refused by the matrix's name."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm import LLM
from llm.checkpoint import Checkpoint
from llm.errors import CheckpointError
from llm.export import export
from llm.info import describe
from llm.settings.model import ExpertsConfig
from llm.tokenization import BPETokenizer
from llm.tokenization.readers.gguf_file import metadata_bytes, read_head
from tests.quantised_checkpoints import FORMATS, write_pair

Q_PROJ = "model.layers.0.self_attn.q_proj"
Opened = Callable[[Path], object]


@pytest.mark.parametrize("opened", [LLM, describe])
@pytest.mark.parametrize("name", ["gptq", "awq", "w4a16"])
def test_a_matrix_that_a_directory_lacks_is_named(
    tmp_path: Path, tiny_tokenizer: BPETokenizer, name: str, opened: Opened
) -> None:
    write_pair(tmp_path, FORMATS[name], tiny_tokenizer, num_hidden_layers=1)
    file = tmp_path / "quantised" / "model.safetensors"
    save_file({key: tensor for key, tensor in load_file(file).items() if not key.startswith(Q_PROJ)}, file)
    with pytest.raises(CheckpointError, match=rf"missing {Q_PROJ}\.weight \[128, 128\]"):
        opened(tmp_path / "quantised")


@pytest.mark.parametrize("opened", [LLM, describe])
def test_a_matrix_that_a_gguf_file_lacks_is_named(tmp_path: Path, tiny_tokenizer: BPETokenizer, opened: Opened) -> None:
    write_pair(tmp_path, FORMATS["awq"], tiny_tokenizer)
    whole = export(tmp_path / "plain", tmp_path / "whole.gguf", "gguf", quantization="q4_0")
    head = read_head(whole, lambda key: True, CheckpointError)
    table = metadata_bytes(head.metadata, [each for each in head.tensors if each.name != "blk.1.ffn_up.weight"])
    content = whole.read_bytes()[-(-head.num_bytes // 32) * 32 :]
    (tmp_path / "a.gguf").write_bytes(table + bytes(-len(table) % 32) + content)
    with pytest.raises(CheckpointError, match=r"missing model\.layers\.1\.mlp\.up_proj\.weight \[256, 128\]"):
        opened(tmp_path / "a.gguf")


@pytest.mark.parametrize("name", ["gptq", "awq", "w4a16"])
def test_a_matrix_that_is_there_twice_is_named(tmp_path: Path, name: str) -> None:
    write_pair(tmp_path, FORMATS[name], num_hidden_layers=1)
    file = tmp_path / "quantised" / "model.safetensors"
    save_file(load_file(file) | {f"{Q_PROJ}.weight": torch.zeros(128, 128)}, file)
    with pytest.raises(CheckpointError, match=rf"{Q_PROJ} is there twice, .*as "):
        Checkpoint(tmp_path / "quantised").model("float32")


def test_experts_in_one_plain_tensor_beside_quantised_matrices_are_read(
    tmp_path: Path, tiny_tokenizer: BPETokenizer
) -> None:
    experts = ExpertsConfig(num_experts=2, num_experts_per_tok=1, moe_intermediate_size=64)
    write_pair(tmp_path, FORMATS["gptq"], tiny_tokenizer, num_hidden_layers=1, mlp="moe", experts=experts)
    plain = Checkpoint(tmp_path / "plain").model("float32")
    stacks = {f"model.{name}": value.clone() for name, value in plain.state_dict().items() if ".experts." in name}
    assert len(stacks) == 2
    file = tmp_path / "quantised" / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if ".experts." not in name} | stacks, file)
    assert "GPTQ-4" in describe(tmp_path / "quantised")["stored"]
    opened = LLM(tmp_path / "quantised").engine.runner.model.state_dict()
    assert all(torch.equal(opened[name.removeprefix("model.")], stack) for name, stack in stacks.items())
