"""Encoding and decoding: equal to tiktoken, to Hugging Face's libraries and to the slow twin."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llm import _rust
from llm.errors import FileError, InvalidArgumentError, TokenizerError
from llm.tokenization import BPETokenizer, TokenizerSettings, load_tokenizer
from tests.reference import bpe as reference
from tests.unit.tokenization_samples import PATTERNS, SAMPLES, TRAINING_TEXT, texts, tiktoken_twin, trained


@functools.cache
def slow_merges(pattern: str) -> list[reference.Pair]:
    return reference.train([TRAINING_TEXT], 60, pattern)


every_pattern = pytest.mark.parametrize("pattern", PATTERNS)


@every_pattern
@pytest.mark.parametrize("name", SAMPLES)
def test_ids_of_samples_equal_tiktoken_and_decode_to_the_text(pattern: str, name: str) -> None:
    tokenizer, text = trained(pattern), SAMPLES[name]
    ids = tokenizer.encode(text)
    assert ids == tiktoken_twin(pattern).encode_ordinary(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()


@every_pattern
@given(text=texts())
def test_ids_equal_tiktoken(pattern: str, text: str) -> None:
    tokenizer = trained(pattern)
    ids = tokenizer.encode(text)
    assert ids == tiktoken_twin(pattern).encode_ordinary(text)
    assert tokenizer.decode(ids) == text


@pytest.mark.long
@every_pattern
@given(text=texts())
def test_ids_equal_the_slow_twin(pattern: str, text: str) -> None:
    merges = slow_merges(pattern)
    tokenizer = BPETokenizer(_rust.Tokenizer.from_ranks(reference.token_bytes(merges), {}, pattern))
    assert tokenizer.encode(text) == reference.encode(text, merges, pattern)


@given(text=texts(), repeat=st.integers(1, 4))
def test_every_way_to_encode_gives_the_same_ids(text: str, repeat: int) -> None:
    tokenizer = trained("gpt4")
    ids = tokenizer.encode(text, allow_special=True)
    array = tokenizer.encode_to_numpy(text, allow_special=True)
    assert array.dtype == np.uint32
    assert array.tolist() == ids
    batch = tokenizer.encode_batch([text] * repeat, allow_special=True)
    assert batch == [ids] * repeat


@pytest.mark.long
def test_every_character_equals_tiktoken() -> None:
    # Blocks keep the number of calls small; the signs around a character show its class by where pieces end.
    codes = [code for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    for pattern in PATTERNS:
        tokenizer, twin = trained(pattern), tiktoken_twin(pattern)
        for start in range(0, len(codes), 4096):
            text = "".join(f"a{chr(code)}1{chr(code)}!" for code in codes[start : start + 4096])
            assert tokenizer.encode(text) == twin.encode_ordinary(text), (pattern, hex(codes[start]))


@given(text=texts(), parts=st.lists(st.sampled_from(["<|endoftext|>", " ", "<|", "a"]), max_size=8))
def test_special_tokens_equal_tiktoken(text: str, parts: list[str]) -> None:
    tokenizer, twin = trained("gpt4"), tiktoken_twin("gpt4")
    text = text.join(parts)
    assert tokenizer.encode(text, allow_special=True) == twin.encode(text, allowed_special="all")
    assert tokenizer.encode(text) == twin.encode_ordinary(text)


def test_special_tokens_come_only_when_allowed() -> None:
    tokenizer = BPETokenizer.train_from_iterator(
        ["abab"], vocab_size=300, special_tokens=["<|a|>", "<|a|><|b|>", "<|b|>"]
    )
    a, both, b = (tokenizer.special_tokens[token] for token in ("<|a|>", "<|a|><|b|>", "<|b|>"))
    assert tokenizer.encode("<|a|><|b|><|a|>x<|b|>", allow_special=True) == [both, a, ord("x"), b]
    assert max(tokenizer.encode("<|a|><|b|>")) < min(a, both, b)
    assert tokenizer.decode([a, 120, b]) == "<|a|>x<|b|>"
    assert tokenizer.decode([a, 120, b], skip_special_tokens=True) == "x"


def test_bos_and_eos_are_added_when_asked() -> None:
    tokenizer = trained("gpt4")
    assert tokenizer.bos_id == tokenizer.special_tokens["<|endoftext|>"] == 499
    assert tokenizer.eos_ids == (499,)
    assert tokenizer.pad_id is None
    assert tokenizer.encode("~", add_bos=True, add_eos=True) == [499, ord("~"), 499]
    bare = BPETokenizer.train_from_iterator(["ab"], vocab_size=257, special_tokens=[])
    with pytest.raises(InvalidArgumentError, match=r"`add_eos` needs a tokenizer with a eos token"):
        bare.encode("a", add_eos=True)


@every_pattern
def test_saved_tokenizer_gives_equal_ids_in_hugging_face(pattern: str, tmp_path: Path) -> None:
    tokenizer = trained(pattern)
    tokenizer.save(tmp_path)
    tokenizers = HuggingFaceTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(tmp_path)
    fast = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in SAMPLES.values():
        ids = tokenizer.encode(text, allow_special=True)
        assert tokenizers.encode(text).ids == ids
        assert auto(text)["input_ids"] == ids
        assert fast(text)["input_ids"] == ids
        assert fast.decode(ids) == text
    assert (auto.bos_token_id, auto.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_ids[0])
    assert len(auto) == tokenizer.vocab_size


@every_pattern
@given(text=texts())
def test_ids_equal_hugging_face(pattern: str, text: str) -> None:
    tokenizer = trained(pattern)
    twin = HuggingFaceTokenizer.from_str(tokenizer.to_json())
    assert twin.encode(text).ids == tokenizer.encode(text, allow_special=True)


def test_a_gap_before_special_ids_survives_saving(tmp_path: Path) -> None:
    ranks = [bytes([byte]) for byte in range(256)]
    tokenizer = BPETokenizer(_rust.Tokenizer.from_ranks(ranks, {"<|endoftext|>": 300}, "gpt4"))
    tokenizer.save(tmp_path)
    again = BPETokenizer.from_pretrained(tmp_path)
    assert again.vocab_size == 301
    assert again.token_bytes()[256:300] == [None] * 44
    assert again.encode("<|endoftext|>", allow_special=True) == [300]
    assert AutoTokenizer.from_pretrained(tmp_path)("<|endoftext|>")["input_ids"] == [300]
    with pytest.raises(InvalidArgumentError, match=r"got 256 at index 0"):
        again.decode([256])


@every_pattern
@pytest.mark.parametrize("as_file", [False, True])
def test_reading_back_gives_equal_ids(pattern: str, as_file: bool, tmp_path: Path) -> None:
    tokenizer = trained(pattern)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path / "tokenizer.json" if as_file else tmp_path)
    assert isinstance(again, BPETokenizer)
    assert (again.pattern, again.vocab_size, again.settings) == (pattern, 500, tokenizer.settings)
    assert again.token_bytes() == tokenizer.token_bytes()
    for text in SAMPLES.values():
        assert again.encode(text, allow_special=True) == tokenizer.encode(text, allow_special=True)


def test_saving_twice_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    trained("gpt2").save(tmp_path)
    trained("gpt4").save(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert BPETokenizer.from_pretrained(str(tmp_path)).pattern == "gpt4"


def test_saving_where_a_file_is_says_so(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(FileError, match=r"taken.*can't be written"):
        trained("gpt4").save(tmp_path / "taken")


@given(ids=st.lists(st.integers(0, 498), max_size=30))
def test_decoding_any_ids_equals_tiktoken(ids: list[int]) -> None:
    tokenizer = trained("gpt4")
    assert tokenizer.decode_bytes(ids) == tiktoken_twin("gpt4").decode_bytes(ids)
    assert tokenizer.decode(ids) == tiktoken_twin("gpt4").decode(ids, errors="replace")
    array = np.array(ids, dtype=np.uint32)
    assert tokenizer.decode(array) == tokenizer.decode(array.astype(np.int64)) == tokenizer.decode(ids)
    assert _rust.Tokenizer.from_json(tokenizer.to_json()).decode(ids) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 500], r"token ids must be ids of this tokenizer \(0 to 499\), got 500 at index 1"),
        ([-1], r"token ids must be from 0 to 4294967295, got -1 at index 0"),
        ([2**32], r"token ids must be from 0 to 4294967295, got 4294967296 at index 0"),
    ],
)
def test_unknown_ids_are_named(ids: list[int], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        trained("gpt4").decode(ids)


def test_lone_surrogates_are_refused() -> None:
    tokenizer = trained("gpt4")
    with pytest.raises(InvalidArgumentError, match=r"without lone surrogates"):
        tokenizer.encode("a\ud800")
    with pytest.raises(InvalidArgumentError, match=r"without lone surrogates"):
        tokenizer.encode_batch(["a", "\udfff"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "Nmt"}}, r"/tokenizer\.json: unsupported `normalizer`: must be null, NFC"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, r"unsupported `pre_tokenizer`"),
        ({"decoder": None}, r"unsupported `decoder`"),
        ({"model": {"type": "Unigram"}}, r"unsupported `type`: must be \"BPE\", got \"Unigram\""),
    ],
)
def test_unsupported_components_are_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    document = json.loads(trained("gpt4").to_json()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(TokenizerError, match=message):
        BPETokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        (
            "notes.txt",
            b"a b c",
            TokenizerError,
            r"a tokenizer must be a directory or tokenizer\.json, .* got a \.txt file",
        ),
        ("tokenizer.json", b"[]", TokenizerError, r"must be a JSON object, got list"),
        ("tokenizer.json", b"{", TokenizerError, r"must be JSON"),
        ("tokenizer.json", b"{\xff", TokenizerError, r"must be UTF-8, got byte 0xff at offset 1"),
        ("tokenizer.json", b"{}", TokenizerError, r"unsupported `model\.type`: must be one of \['BPE', 'WordLevel'\]"),
        ("absent.json", None, FileError, r"no such file\nhint"),
    ],
)
def test_bad_files_are_named(
    name: str, content: bytes | None, error: type[Exception], message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message) as raised:
        load_tokenizer(tmp_path / name)
    assert name in str(raised.value)


def test_settings_must_name_special_tokens(tmp_path: Path) -> None:
    tokenizer = trained("gpt4")
    with pytest.raises(TokenizerError, match=r"must be special tokens \(\['<\|endoftext\|>'\]\), got '<pad>'"):
        BPETokenizer(tokenizer._core, TokenizerSettings(pad_token="<pad>"))
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": 5}')
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: Expected `str \| null`, got `int`"):
        BPETokenizer.from_pretrained(tmp_path)


def test_settings_of_other_writers_are_understood(tmp_path: Path) -> None:
    trained("gpt4").save(tmp_path)
    config = {
        "eos_token": {"content": "<|endoftext|>", "lstrip": False},
        "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}],
        "model_max_length": 1024,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    settings = BPETokenizer.from_pretrained(tmp_path).settings
    assert settings == TokenizerSettings(
        eos_tokens=("<|endoftext|>",), chat_template="D", named_templates={"tool_use": "T"}
    )
    (tmp_path / "chat_template.jinja").write_text("J")
    again = BPETokenizer.from_pretrained(tmp_path)
    assert again.chat_template == "J"
    again.save(tmp_path)
    assert not (tmp_path / "chat_template.jinja").exists()
    assert BPETokenizer.from_pretrained(tmp_path).chat_template == "J"


def test_importing_tokenization_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, llm.tokenization; print([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
