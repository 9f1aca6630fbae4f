"""Tokenizer files as users bring them, broken ones included."""

import base64
import json
import shutil
from pathlib import Path

import pytest
import tiktoken

from llm.errors import FileError, TokenizerError
from llm.tokenization import (
    BPETokenizer,
    TokenizerSettings,
    load_tokenizer,
)
from tests.unit.test_tokenization_vocabularies import CACHE, DATA, PUBLISHED
from tests.unit.tokenization_files import MAKES
from tests.unit.tokenization_samples import RANKS, SAMPLES, assert_same, trained


def rank_lines(ranks: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


@pytest.mark.parametrize(
    ("name", "file", "special"),
    [
        ("cl100k_base", "cl100k_base.tiktoken", {"<|endoftext|>": 100_257, "<|endofprompt|>": 100_276}),
        ("o200k_base", "o200k_base.tiktoken", {"<|endoftext|>": 199_999}),
        ("qwen", "qwen.tiktoken", {"<|im_start|>": 151_644, "<|extra_204|>": 151_850}),
    ],
)
def test_published_rank_files_are_known_by_name_and_by_hash(
    name: str, file: str, special: dict[str, int], tmp_path: Path
) -> None:
    source = DATA / "vocab" / file
    if not source.is_file():
        pytest.skip(f"{source} is not here")
    tokenizer = load_tokenizer(source)
    assert special.items() <= tokenizer.special_tokens.items()
    assert isinstance(tokenizer, BPETokenizer)
    shutil.copy(source, tmp_path / "renamed.bin")
    renamed = load_tokenizer(tmp_path / "renamed.bin")
    assert renamed.special_tokens == tokenizer.special_tokens
    assert_same(renamed, tokenizer)
    assert tokenizer.eos_ids[0] == tokenizer.special_tokens["<|endoftext|>"]


def test_llama3s_rank_file_is_known_in_its_directory() -> None:
    if not (CACHE / "tokenizer.model").is_file():
        pytest.skip("tokenizer.model is not here; `make test-data` fetches it")
    tokenizer = load_tokenizer(CACHE / "tokenizer.model")
    assert tokenizer.vocab_size == 128_256
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (128_000, (128_001, 128_009))
    assert tokenizer.encode("<|python_tag|>x", allow_special=True) == [128_010, 87]


def test_an_unknown_rank_file_needs_a_pattern(tmp_path: Path) -> None:
    file = tmp_path / "mine.tiktoken"
    file.write_bytes(rank_lines(RANKS))
    with pytest.raises(TokenizerError, match=r"mine\.tiktoken: a rank file needs a pattern.*\nhint: pass `p"):
        load_tokenizer(file)
    tokenizer = load_tokenizer(tmp_path, pattern="gpt2", special_tokens={"<|endoftext|>": 300})
    assert tokenizer.encode("abcab c<|endoftext|>", allow_special=True) == [257, 256, 32, 99, 300]
    assert tokenizer.vocab_size == 301


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tiktoken", b"YQ==", r"line 1 must be a new token in Base64, a space and its rank, got 'YQ=='"),
        (
            "a.tiktoken",
            b"YQ== 0\n!!!! 1\n",
            r"line 2 must be a new token in Base64, a space and its rank, got '!!!! 1'",
        ),
        ("a.tiktoken", b"YQ== x\n", r"line 1 must be"),
        ("a.tiktoken", b"YQ== 0\nYQ== 1\n", r"line 2 must be a new token"),
        ("a.tiktoken", b"\xff\xfe \x00\n", r"line 1 must be"),
        ("a.tiktoken", b"YQ== 0\nYg== 0\n", r"ranks must be unique, got 0 for b'a' and b'b'"),
        ("a.tiktoken", b"YQ== 99999999999999\n", r"ranks must be from 0 to 16777215, got 99999999999999 for b'a'"),
        ("a.tiktoken", b"YQ== -1\n", r"ranks must be from 0 to 16777215, got -1 for b'a'"),
        ("a.tiktoken", b"YQ== 0\n", r"each of the 256 bytes must be a token, byte 0x00 is none"),
        ("a.tiktoken", b"", r"each of the 256 bytes must be a token, byte 0x00 is none"),
        ("a.bin", b"\x0a\x0fsentencepiece", r"a tokenizer must be a directory or tokenizer\.json, .* got a \.bin file"),
        ("a.bin", b"", r"got a \.bin file"),
    ],
)
def test_broken_rank_files_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as raised:
        load_tokenizer(tmp_path / name, pattern="gpt2")
    assert str(raised.value).startswith(str(tmp_path / name))


def test_gpt2s_pair_is_read_from_either_file_and_equals_tiktoken() -> None:
    folder = next((f for f in (DATA / "vocab", CACHE) if (f / "gpt2_vocab.bpe").is_file()), None)
    if folder is None:
        pytest.skip("GPT-2's files are not here")
    one, other = (load_tokenizer(folder / name) for name in ("gpt2_encoder.json", "gpt2_vocab.bpe"))
    assert one.special_tokens == other.special_tokens == {"<|endoftext|>": 50_256}
    ranks = {token: index for index, token in enumerate(one.token_bytes()) if token and index < 50_256}
    twin = tiktoken.Encoding(
        "gpt2", pat_str=PUBLISHED["gpt2"], mergeable_ranks=ranks, special_tokens=one.special_tokens
    )
    for text in SAMPLES.values():
        ids = twin.encode(text, allowed_special="all")
        assert one.encode(text, allow_special=True) == other.encode(text, allow_special=True) == ids


def test_a_directory_must_have_one_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"must contain tokenizer\.json, .* got none\nhint: "):
        load_tokenizer(tmp_path)
    for name in ("a.tiktoken", "b.tiktoken"):
        (tmp_path / name).write_bytes(rank_lines(RANKS))
    with pytest.raises(FileError, match=r"got a\.tiktoken, b\.tiktoken\nhint: pass the file"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileError, match=r"absent: no such file\nhint: pass a directory or tokenizer\.json"):
        load_tokenizer(tmp_path / "absent")


def test_the_missing_half_of_a_pair_is_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"x": 0}')
    with pytest.raises(FileError, match=r"vocab\.json: needs merges\.txt or vocab\.bpe in the same directory"):
        load_tokenizer(tmp_path / "vocab.json")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(TokenizerError, match=r"vocab\.json: merge \"a b c\" has a token that is not in `model\.vocab`"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    with pytest.raises(
        TokenizerError, match=r"unsupported `tokenizer_class`: must be one of \['GPT2Tokenizer', 'Qwen2T"
    ):
        load_tokenizer(tmp_path)


def test_options_are_refused_where_the_file_says_it(tmp_path: Path) -> None:
    trained("gpt4").save(tmp_path)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: contains its own pattern; `pattern` is only for"):
        load_tokenizer(tmp_path, pattern="gpt2")
    with pytest.raises(TokenizerError, match=r"contains its own special_tokens"):
        load_tokenizer(tmp_path, special_tokens={})


def test_settings_are_read_as_transformers_does(tmp_path: Path) -> None:
    MAKES["llama2"]().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "</s>", "unk_token": {"content": "<unk>"}, "eos_token": "</s>"})
    )
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "add_bos_token": True, "add_eos_token": False})
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0, 99_999]}))
    settings = load_tokenizer(tmp_path).settings
    assert settings == TokenizerSettings(
        bos_token="<s>",
        eos_tokens=("</s>", "<unk>"),
        unk_token="<unk>",
        add_bos_token=True,
        add_eos_token=False,
    )
    load_tokenizer(tmp_path).save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").settings == settings
