"""Files of every format: found, read, written and read again; broken ones are named."""

import base64
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from tokenizers import Tokenizer as HuggingFaceTokenizer
from transformers import AutoTokenizer

from llm.errors import FileError, InvalidArgumentError, TokenizerError
from llm.tokenization import (
    BPETokenizer,
    SimpleCharacterTokenizer,
    TokenizerSettings,
    load_tokenizer,
    use_chat_template,
    write_tokenizer,
)
from llm.tokenization.readers.gguf_file import metadata_bytes, read_metadata
from tests.unit.test_tokenization_vocabularies import CACHE, DATA, PUBLISHED
from tests.unit.tokenization_files import MAKES
from tests.unit.tokenization_samples import SAMPLES, tiktoken_twin, trained

BYTES = [bytes([byte]) for byte in range(256)]
RANKS = {token: rank for rank, token in enumerate([*BYTES, b"ab", b"abc"])}


def rank_lines(ranks: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


def assert_same(one: Any, other: Any, *, allow_special: bool = True) -> None:
    for text in SAMPLES.values():
        assert one.encode(text, allow_special=allow_special) == other.encode(text, allow_special=allow_special)


def saved(make: str, directory: Path) -> BPETokenizer:
    """One of Hugging Face's makes, opened from its file."""
    MAKES[make]().save(str(directory / "tokenizer.json"))
    return BPETokenizer.from_pretrained(directory)


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
    with pytest.raises(
        TokenizerError, match=r"mine\.tiktoken: a rank file does not say how text is cut.*\nhint: give `p"
    ):
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
        ("a.tiktoken", b"YQ== 0\nYg== 0\n", r"ranks must be there once each, got 0 for b'a' and b'b'"),
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
    with pytest.raises(FileError, match=r"must have tokenizer\.json, .* got none\nhint: "):
        load_tokenizer(tmp_path)
    for name in ("a.tiktoken", "b.tiktoken"):
        (tmp_path / name).write_bytes(rank_lines(RANKS))
    with pytest.raises(FileError, match=r"got a\.tiktoken, b\.tiktoken\nhint: name the file"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileError, match=r"absent: no such file\nhint: give a directory or tokenizer\.json"):
        load_tokenizer(tmp_path / "absent")


def test_the_missing_half_of_a_pair_is_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"x": 0}')
    with pytest.raises(FileError, match=r"vocab\.json: needs merges\.txt or vocab\.bpe beside it, which is not there"):
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
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: has its own pattern; `pattern` is for rank files"):
        load_tokenizer(tmp_path, pattern="gpt2")
    with pytest.raises(TokenizerError, match=r"has its own special_tokens"):
        load_tokenizer(tmp_path, special_tokens={})


# --- writing ---


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
            TokenizerError, match=r"GPT-2's pair of files can't hold this tokenizer's `normalizer`|`pre_tok"
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
        TokenizerError, match=rf"can't hold this tokenizer's `({part})`: .*\nhint: tokenizer\.json holds"
    ):
        write_tokenizer(tokenizer, target, format)
    assert not target.exists()


def test_flags_of_added_tokens_are_lost_only_where_there_is_no_place_for_them(tmp_path: Path) -> None:
    tokenizer = saved("every flag", tmp_path)
    for format in ("tiktoken", "gguf"):
        with pytest.raises(TokenizerError, match=r"can't hold this tokenizer's `added_tokens`: \["):
            write_tokenizer(tokenizer, tmp_path / "out", format)
    write_tokenizer(tokenizer, tmp_path / "pair", "gpt2")
    assert_same(load_tokenizer(tmp_path / "pair"), tokenizer)


def test_unknown_formats_and_other_tokenizers_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"`format` must be one of \['gguf', 'gpt2', 'tiktoken', 'tokenizer\.j"
    ):
        write_tokenizer(trained("gpt2"), tmp_path / "x", "onnx")
    characters = SimpleCharacterTokenizer.train("abc")
    with pytest.raises(TokenizerError, match=r"holds byte-level BPE alone, got a SimpleCharacterTokenizer"):
        write_tokenizer(characters, tmp_path / "x", "gguf")
    write_tokenizer(characters, tmp_path / "tokenizer.json", "tokenizer.json")
    assert load_tokenizer(tmp_path).encode("cab") == [2, 0, 1]


def test_a_file_alone_is_written_as_tokenizer_json(tmp_path: Path) -> None:
    write_tokenizer(trained("gpt4"), tmp_path / "mine.json", "tokenizer.json")
    assert_same(load_tokenizer(tmp_path / "mine.json"), trained("gpt4"))


# --- GGUF ---


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
        (header(version=3 << 24), r"must be of version 2 or 3 in little-endian order, got version 50331648"),
        (header()[:10], r"is torn: 8 bytes are announced at offset 8, the file ends at 10"),
        (header(num_values=WILD), rf"is torn: {WILD} values are announced at offset 24, 0 bytes are left"),
        (header() + struct.pack("<Q", WILD), r"is torn: 1 values are announced at offset 24, 8 bytes are left"),
        (header() + struct.pack("<Q", WILD) + b"x" * 9, rf"is torn: {WILD} bytes are announced at offset 32"),
        (header() + KEY + struct.pack("<I", 13), r"types of values must be from 0 to 12, got 13 at offset 47"),
        (header() + KEY + struct.pack("<IQ", 8, WILD), rf"is torn: {WILD} bytes are announced"),
        (header() + KEY + struct.pack("<IIQ", 9, 8, WILD), rf"is torn: {WILD} values are announced"),
        (header() + KEY + struct.pack("<IIQ", 9, 4, 1000), r"is torn: 1000 values are announced at offset 59, 0 bytes"),
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
        ({"tokenizer.ggml.tokens": ["a", "a"]}, r"`tokenizer\.ggml\.tokens` must be there once each"),
        ({"tokenizer.ggml.scores": [0.5]}, r"`tokenizer\.ggml\.scores` must have one for each of 270 tokens, got 1"),
        ({"tokenizer.ggml.token_type": [1]}, r"`tokenizer\.ggml\.token_type` must have one for each of 270 tokens"),
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


# --- pickles ---


class Attack:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch should_not_exist",)


def test_pickles_are_read_only_where_allowed(tmp_path: Path) -> None:
    tokenizer = trained("gpt4")
    file = tmp_path / "tokenizer.pkl"
    file.write_bytes(pickle.dumps(tiktoken_twin("gpt4")))
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.pkl: is a pickle, which is read only where `allow_pickle=True`"
    ):
        load_tokenizer(file)
    again = load_tokenizer(file, allow_pickle=True)
    assert again.special_tokens == tokenizer.special_tokens
    assert_same(again, tokenizer)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_plain_values_are_read(protocol: int, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.pickle"
    state = {"mergeable_ranks": RANKS, "pattern": "gpt4", "special_tokens": {"<|e|>": 258}}
    # Before protocol 3, bytes are made by calling `_codecs.encode`: a class that is refused.
    file.write_bytes(pickle.dumps(state, protocol))
    if protocol < 3:
        with pytest.raises(TokenizerError, match=r"refused class `_codecs\.encode`"):
            load_tokenizer(file, allow_pickle=True)
        return
    assert load_tokenizer(file, allow_pickle=True).encode("abc<|e|>", allow_special=True) == [257, 258]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pickle.dumps(Attack()),
            r"refused class `posix\.system`: a pickled tokenizer may hold plain values and .*\nhint",
        ),
        (pickle.dumps([Attack()], 2), r"refused class `posix\.system`"),
        (pickle.dumps(Attack(), 0), r"refused class `posix\.system`"),
        (pickle.dumps(Path("x")), r"refused class `pathlib\._?\.?"),
        (b"cbuiltins\neval\n(S'1'\ntR.", r"refused class `builtins\.eval`"),
        (b"\x80\x04Pid\n.", r"refused persistent id"),
        (pickle.dumps({"mergeable_ranks": RANKS})[:-9], r"must be a whole pickle: "),
        (b"\x80\x04", r"must be a whole pickle: EOFError"),
        (b"\x80\xff.", r"must be a whole pickle: ValueError unsupported pickle protocol: 255"),
        (pickle.dumps([1]), r"must hold a dict with `mergeable_ranks` .*, got list '\[1\]'"),
        (pickle.dumps({"vocab": {}}), r"must hold a dict with `mergeable_ranks` .*, got keys \['vocab'\]"),
        (pickle.dumps({"mergeable_ranks": {"a": 0}, "pattern": "gpt2"}), r"got keys \['mergeable_ranks', 'pattern'\]"),
        (pickle.dumps({"mergeable_ranks": {b"a": 2**70}, "pattern": "gpt2"}), r"ranks must be from 0 to 16777215"),
    ],
)
def test_bad_pickles_are_refused_by_name(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tokenizer.pkl"
    file.write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as raised:
        load_tokenizer(file, allow_pickle=True)
    assert str(raised.value).startswith(str(file))
    assert not (tmp_path / "should_not_exist").exists()


# --- settings ---


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
