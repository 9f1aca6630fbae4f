"""Tokenizers written in every format and read again."""

import base64
import json
from pathlib import Path

import pytest
import tiktoken
from transformers import AutoTokenizer

from llm.errors import InvalidArgumentError, TokenizerError
from llm.tokenization import (
    SimpleCharacterTokenizer,
    TokenizerSettings,
    load_tokenizer,
    use_chat_template,
    write_tokenizer,
)
from tests.unit.tokenization_files import saved
from tests.unit.tokenization_samples import SAMPLES, assert_same, tiktoken_twin, trained


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", "o200k", "qwen2"])
def test_ranks_come_back(pattern: str, tmp_path: Path) -> None:
    tokenizer = trained(pattern)
    file = tmp_path / "ranks.tiktoken"
    write_tokenizer(tokenizer, file, "tiktoken")
    again = load_tokenizer(file, pattern=pattern, special_tokens=tokenizer.special_tokens)
    assert_same(again, tokenizer)
    assert again.to_json() == tokenizer.to_json()
    lines = [line.split() for line in file.read_bytes().splitlines()]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    twin = tiktoken.Encoding(
        "mine", pat_str=tiktoken_twin(pattern)._pat_str, mergeable_ranks=ranks, special_tokens=tokenizer.special_tokens
    )
    for text in SAMPLES.values():
        assert twin.encode(text, allowed_special="all") == tokenizer.encode(text, allow_special=True)


@pytest.mark.parametrize("make", ["gpt2", "smollm"])
def test_gpt2s_pair_comes_back_and_opens_in_transformers(make: str, tmp_path: Path) -> None:
    tokenizer = trained("gpt2") if make == "gpt2" else trained("qwen2")
    if make == "smollm":
        with pytest.raises(
            TokenizerError, match=r"GPT-2's pair of files can't store this tokenizer's `normalizer`|`pre_tok"
        ):
            write_tokenizer(tokenizer, tmp_path, "gpt2")
        return
    write_tokenizer(tokenizer, tmp_path, "gpt2")
    again = load_tokenizer(tmp_path)
    assert (again.special_tokens, again.settings) == (tokenizer.special_tokens, tokenizer.settings)
    assert_same(again, tokenizer)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    for text in SAMPLES.values():
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text, allow_special=True)


def test_qwen2s_pair_comes_back(tmp_path: Path) -> None:
    tokenizer = saved("qwen2", tmp_path)
    write_tokenizer(tokenizer, tmp_path / "pair", "gpt2")
    again = load_tokenizer(tmp_path / "pair")
    assert_same(again, tokenizer)
    assert again.encode("e\u0301") == again.encode("é")
    config = json.loads((tmp_path / "pair" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "Qwen2Tokenizer"


@pytest.mark.parametrize("make", ["gpt2", "smollm", "qwen2", "gpt4"])
def test_gguf_comes_back(make: str, tmp_path: Path) -> None:
    tokenizer = trained("gpt4") if make == "gpt4" else saved(make, tmp_path)
    tokenizer.settings = TokenizerSettings(
        bos_token="<|endoftext|>", eos_tokens=("<|endoftext|>",), add_bos_token=False
    )
    use_chat_template(tokenizer, "play")
    file = tmp_path / "vocab.gguf"
    write_tokenizer(tokenizer, file, "gguf")
    again = load_tokenizer(file)
    assert again.special_tokens == tokenizer.special_tokens
    assert (again.bos_id, again.eos_ids, again.chat_template) == (
        tokenizer.bos_id,
        tokenizer.eos_ids,
        tokenizer.chat_template,
    )
    assert_same(again, tokenizer)


@pytest.mark.parametrize("format", ["tiktoken", "gpt2", "gguf"])
@pytest.mark.parametrize(
    ("make", "part"),
    [
        ("llama2", "decoder"),
        ("deepseek", "pre_tokenizer"),
        ("prefix space", "pre_tokenizer"),
        ("decomposed", "normalizer"),
        ("roberta's post-processor", "post_processor"),
    ],
)
def test_what_a_format_cant_hold_is_named_and_nothing_is_written(
    make: str, part: str, format: str, tmp_path: Path
) -> None:
    tokenizer = saved(make, tmp_path)
    target = tmp_path / "out"
    with pytest.raises(
        TokenizerError, match=rf"can't store this tokenizer's `({part})`: .*\nhint: write tokenizer\.json"
    ):
        write_tokenizer(tokenizer, target, format)
    assert not target.exists()


def test_flags_of_added_tokens_are_lost_only_where_there_is_no_place_for_them(tmp_path: Path) -> None:
    tokenizer = saved("every flag", tmp_path)
    for format in ("tiktoken", "gguf"):
        with pytest.raises(TokenizerError, match=r"can't store this tokenizer's `added_tokens`: \["):
            write_tokenizer(tokenizer, tmp_path / "out", format)
    write_tokenizer(tokenizer, tmp_path / "pair", "gpt2")
    assert_same(load_tokenizer(tmp_path / "pair"), tokenizer)


def test_unknown_formats_and_other_tokenizers_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"`format` must be one of \['gguf', 'gpt2', 'tiktoken', 'tokenizer\.j"
    ):
        write_tokenizer(trained("gpt2"), tmp_path / "x", "onnx")
    characters = SimpleCharacterTokenizer.train("abc")
    with pytest.raises(TokenizerError, match=r"stores only byte-level BPE, got a SimpleCharacterTokenizer"):
        write_tokenizer(characters, tmp_path / "x", "gguf")
    write_tokenizer(characters, tmp_path / "tokenizer.json", "tokenizer.json")
    assert load_tokenizer(tmp_path).encode("cab") == [2, 0, 1]


def test_a_file_alone_is_written_as_tokenizer_json(tmp_path: Path) -> None:
    write_tokenizer(trained("gpt4"), tmp_path / "mine.json", "tokenizer.json")
    assert_same(load_tokenizer(tmp_path / "mine.json"), trained("gpt4"))
