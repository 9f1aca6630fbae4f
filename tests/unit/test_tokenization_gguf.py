"""Tokenizers in GGUF files, torn ones included."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers.pre_tokenizers import ByteLevel

from llm.errors import TokenizerError
from llm.tokenization import (
    BPETokenizer,
    load_tokenizer,
    write_tokenizer,
)
from llm.tokenization.readers.gguf_file import metadata_bytes, read_metadata
from tests.unit.tokenization_samples import SAMPLES


def sentence_piece_values() -> dict[str, Any]:
    pieces = ["▁", "h", "e", "l", "o", "▁h", "el", "lo", "ell", "▁hello"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, "▁hell"]
    num_pieces = len(pieces) + 1
    return {
        "general.name": "x",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * num_pieces],
        "tokenizer.ggml.scores": [0.0] * 259 + [-10.0] * 5 + [-1.0, -2.0, -8.0, -4.0, -9.0, -5.0],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def test_sentence_piece_scores_become_merges(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(metadata_bytes(sentence_piece_values()))
    tokenizer = load_tokenizer(file)
    assert isinstance(tokenizer, BPETokenizer)
    # "▁h" and "el" merge first, then "ell" (-4) and "▁hell" (-5), and "▁hello" (-9) of that and "o".
    names = sentence_piece_values()["tokenizer.ggml.tokens"]
    assert [names[i] for i in tokenizer.encode("hello")] == ["▁hello"]
    assert [names[i] for i in tokenizer.encode("hell lo")] == ["▁hell", "▁", "lo"]
    assert tokenizer.encode("é") == [names.index("▁"), 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode(tokenizer.encode("hello é")) == "hello é"
    assert tokenizer.template == ([1], [])
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))
    theirs = HuggingFaceTokenizer.from_str(tokenizer.to_json())
    for text in (*SAMPLES.values(), "hello hell lo", "<s>hello"):
        assert tokenizer.encode(text, allow_special=True) == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("name", "digits", "bracket"),
    [("deepseek-llm", ["1", "2", "3", "4"], ["(", "a"]), ("deepseek-v3", ["123", "4"], ["(a"])],
)
def test_deepseeks_models_cut_texts_by_several_patterns(
    name: str, digits: list[str], bracket: list[str], tmp_path: Path
) -> None:
    tokens = [*sorted(ByteLevel.alphabet()), "12", "123", "1234", "(a"]
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["1 2", "12 3", "123 4", "( a"],
    }
    (tmp_path / "x.gguf").write_bytes(metadata_bytes(values))
    tokenizer = BPETokenizer.from_pretrained(tmp_path / "x.gguf")
    assert [tokens[token_id] for token_id in tokenizer.encode("1234")] == digits
    assert [tokens[token_id] for token_id in tokenizer.encode("(a")] == bracket
    theirs = HuggingFaceTokenizer.from_str(tokenizer.to_json())
    for text in (*SAMPLES.values(), "中文か12345\r\n  déjà vu! ", "a\n\n b(c)"):
        assert tokenizer.encode(text) == theirs.encode(text).ids
    write_tokenizer(tokenizer, tmp_path / "y.gguf", "gguf")
    assert read_metadata(tmp_path / "y.gguf", "tokenizer.ggml.pre") == {"tokenizer.ggml.pre": name}


def changed(**values: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda base: metadata_bytes(base | {f"tokenizer.{key}": value for key, value in values.items()})


def header(version: int = 3, num_values: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, num_values)


KEY = struct.pack("<Q", 11) + b"tokenizer.x"

WILD = 2**63


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(version=1), r"must be of version 2 or 3 in little-endian order, got version 1"),
        (header(version=3 << 24), r"must be in little-endian order, got a big-endian file"),
        (header()[:10], r"is truncated: 8 bytes are announced at offset 8, the file ends at 10"),
        (header(num_values=WILD), rf"is truncated: {WILD} values are announced at offset 24, 0 bytes are left"),
        (header() + struct.pack("<Q", WILD), r"is truncated: 1 values are announced at offset 24, 8 bytes are left"),
        (header() + struct.pack("<Q", WILD) + b"x" * 9, rf"is truncated: {WILD} bytes are announced at offset 32"),
        (header() + KEY + struct.pack("<I", 13), r"value types must be from 0 to 12, got 13 at offset 47"),
        (header() + KEY + struct.pack("<IQ", 8, WILD), rf"is truncated: {WILD} bytes are announced"),
        (header() + KEY + struct.pack("<IIQ", 9, 8, WILD), rf"is truncated: {WILD} values are announced"),
        (
            header() + KEY + struct.pack("<IIQ", 9, 4, 1000),
            r"is truncated: 1000 values are announced at offset 59, 0 bytes",
        ),
        (header() + KEY + struct.pack("<IIQ", 9, 9, 1), r"lists of lists are not supported"),
        (header() + KEY + struct.pack("<IQ", 8, 2) + b"\xff\xfe", r"strings must be UTF-8, got b'\\xff\\xfe'"),
        (header(num_values=0), r"unsupported `tokenizer\.ggml\.model`: must be gpt2 or llama, got None"),
    ],
)
def test_torn_gguf_files_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as raised:
        load_tokenizer(file)
    assert str(raised.value).startswith(str(file))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, r"must be gpt2 or llama, got 'bert'"),
        ({"tokenizer.ggml.model": 7}, r"`tokenizer\.ggml\.model` must be str, got '7'"),
        ({"tokenizer.ggml.model": "gpt2"}, r"unsupported `tokenizer\.ggml\.pre`: must be one of \['dbrx', .*got None"),
        ({"tokenizer.ggml.tokens": "abc"}, r"`tokenizer\.ggml\.tokens` must be list, got 'abc'"),
        ({"tokenizer.ggml.tokens": [1, 2]}, r"`tokenizer\.ggml\.tokens` must be a list of str, got '\[1, 2\]'"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, r"`tokenizer\.ggml\.tokens` must be unique"),
        (
            {"tokenizer.ggml.scores": [0.5]},
            r"`tokenizer\.ggml\.scores` must have one value for each of 270 tokens, got 1",
        ),
        (
            {"tokenizer.ggml.token_type": [1]},
            r"`tokenizer\.ggml\.token_type` must have one value for each of 270 tokens",
        ),
        ({"tokenizer.ggml.add_space_prefix": 1}, r"`tokenizer\.ggml\.add_space_prefix` must be bool, got '1'"),
        ({"tokenizer.ggml.bos_token_id": True}, r"`tokenizer\.ggml\.bos_token_id` must be int, got 'True'"),
    ],
)
def test_gguf_values_of_another_kind_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(metadata_bytes(sentence_piece_values() | change))
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(file)


def test_every_cut_of_a_gguf_file_is_an_error_and_never_more(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    content = metadata_bytes(sentence_piece_values())
    for end in range(0, len(content), 37):
        file.write_bytes(content[:end])
        with pytest.raises(TokenizerError):
            load_tokenizer(file)


def test_gguf_metadata_of_every_type_is_read_or_passed_over(tmp_path: Path) -> None:
    values = {
        "a.text": "ü",
        "a.flag": True,
        "a.count": 7,
        "a.texts": ["x", ""],
        "a.ids": [1, -2],
        "a.floats": [0.5, -1.0],
    }
    file = tmp_path / "x.gguf"
    # The weights after it are not looked at.
    file.write_bytes(metadata_bytes(values | {"b.last": "end"}) + b"\xff" * 100)
    assert read_metadata(file, "a.") == values
    assert read_metadata(file, "b.") == {"b.last": "end"}
