"""Published vocabularies and patterns: ids equal tiktoken's and pieces equal a regex engine's, on anything."""

import base64
import functools
import sys
import unicodedata
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as HuggingFaceTokenizer

from llm import _rust
from llm.data.tokenize import encode_documents
from llm.errors import InvalidArgumentError, TokenizerError
from llm.settings.run import PatternName
from llm.tokenization import BPETokenizer
from tests.unit.tokenization_samples import SAMPLES, TRAINING_TEXT

# Takes 10 to 50 seconds; `make check` leaves it out.
pytestmark = pytest.mark.long

DATA = Path(__file__).parents[3] / "shared" / "data"
CACHE = Path(__file__).parents[2] / ".cache"

GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As tiktoken, Llama 3 and Qwen publish them.
PUBLISHED = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "gpt4": GPT4,
    "cl100k": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
        r"|\s+(?!\S)|\s"
    ),
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "llama3": GPT4,
    "qwen2": GPT4.replace("{1,3}", ""),
    "whitespace": r"\s+|\S+",
}
# Vocabulary by name: its file, its pattern and its special tokens.
VOCABULARIES = {
    "gpt2": ("gpt2_vocab.bpe", "gpt2", {"<|endoftext|>": 50_256}),
    "cl100k_base": (
        "cl100k_base.tiktoken",
        "cl100k",
        {
            "<|endoftext|>": 100_257,
            "<|fim_prefix|>": 100_258,
            "<|fim_middle|>": 100_259,
            "<|fim_suffix|>": 100_260,
            "<|endofprompt|>": 100_276,
        },
    ),
    "o200k_base": ("o200k_base.tiktoken", "o200k", {"<|endoftext|>": 199_999, "<|endofprompt|>": 200_018}),
    "llama3": (
        "tokenizer.model",
        "llama3",
        {"<|begin_of_text|>": 128_000, "<|end_of_text|>": 128_001, "<|eot_id|>": 128_009},
    ),
    "qwen": ("qwen.tiktoken", "qwen2", {"<|endoftext|>": 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645}),
}
CORPORA = (
    "tinyshakespeare.txt",
    "enwiki_excerpt.txt",
    "code_python_5mb.txt",
    "django_msgstr_multilingual.txt",
    "udhr_multilingual.txt",
)
ALL_CHARACTERS = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]

every_pattern = pytest.mark.parametrize("pattern", [name for name in PUBLISHED if name != "llama3"])
every_vocabulary = pytest.mark.parametrize("name", VOCABULARIES)


def ranks_of(file: Path) -> list[bytes]:
    """Bytes of each id, from GPT-2's merges or tiktoken's lines of Base64 and rank."""
    lines = file.read_text(encoding="utf-8").splitlines()
    if file.suffix != ".bpe":
        return [base64.b64decode(line.split()[0]) for line in lines if line]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    numbered = printable + [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(numbered[188:])}
    merged = [bytes(letters[letter] for letter in line.replace(" ", "")) for line in lines[1:]]
    return [bytes([byte]) for byte in numbered] + merged


@functools.cache
def published(name: str) -> tuple[_rust.Tokenizer, tiktoken.Encoding]:
    """Ours and tiktoken's with the vocabulary `name`; skips the test if it is not here."""
    file_name, pattern, special = VOCABULARIES[name]
    files = [folder / file_name for folder in (DATA / "vocab", CACHE)]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        pytest.skip(f"{file_name} is not in {DATA / 'vocab'}, nor fetched by `make test-data`")
    ranks = ranks_of(file)
    table = {token: rank for rank, token in enumerate(ranks)}
    twin = tiktoken.Encoding(name, pat_str=PUBLISHED[pattern], mergeable_ranks=table, special_tokens=special)
    return _rust.Tokenizer.from_ranks(ranks, special, pattern), twin


@functools.cache
def bare(pattern: str) -> _rust.Tokenizer:
    """The bytes alone as tokens, for how it cuts."""
    return _rust.Tokenizer.from_ranks([bytes([byte]) for byte in range(256)], {}, pattern)


@functools.cache
def compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile(PUBLISHED[pattern])


def any_text() -> st.SearchStrategy[str]:
    """Text of all planes, text full of borders, long runs and text of special tokens."""
    borders = (
        "ab sStTrReEvVmMlLdD'\u017f\u212a09½Ⅷ٣.,/!?éßǅʰ語\u0301\u0903😀 "
        "\n\r\t\x0b\x0c\x1c\x85\xa0\u2003\u2028\u3000\u200b\0"
    )
    assigned = st.characters(exclude_categories=["Cs", "Cn"])
    run = st.builds(lambda character, length: character * length, st.sampled_from(borders), st.integers(1, 300))
    special = st.sampled_from(["<|endoftext|>", "<|im_start|>", "<|", "|>", "'ll", "'S", "\r\n", "  "])
    part = st.text(st.sampled_from(borders), max_size=12) | st.text(assigned, max_size=12) | run | special
    return st.lists(part, max_size=6).map("".join)


def generated(max_examples: int) -> settings:
    return settings(max_examples=max_examples, deadline=None, suppress_health_check=list(HealthCheck))


def mixed_text() -> str:
    """2 KB of every sample and some more."""
    text = TRAINING_TEXT[:1_200] + "".join(SAMPLES[name] for name in SAMPLES if name != "long runs")
    return (
        text
        + "camelCase HTMLBody x/y\n//z\n \n"
        + " " * 20
        + "\n" * 20
        + "a" * 40
        + "7" * 20
        + "語" * 20
        + "'LL'ſ   \n "
    )


def corpus(name: str, max_bytes: int | None) -> str:
    file = DATA / "corpus" / name
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    return file.read_bytes()[:max_bytes].decode("utf-8", "ignore")


def assert_ids_equal(name: str, text: str) -> None:
    ours, twin = published(name)
    ids = ours.encode_to_numpy(text)
    assert np.array_equal(ids, twin.encode_to_numpy(text, disallowed_special=()))
    assert ours.decode(ids) == text


def check_generated(name: str, text: str) -> None:
    ours, twin = published(name)
    assert ours.encode(text) == twin.encode_ordinary(text)
    with_special = ours.encode(text, allow_special=True)
    assert with_special == twin.encode(text, allowed_special="all")
    assert ours.decode_bytes(with_special) == text.encode()


def check_pieces(pattern: str, text: str) -> None:
    assert bare(pattern).pieces(text) == compiled(pattern).findall(text)


@every_vocabulary
@pytest.mark.parametrize("corpus_name", CORPORA)
def test_ids_of_a_corpus_equal_tiktoken(name: str, corpus_name: str) -> None:
    assert_ids_equal(name, corpus(corpus_name, 1_000_000))


@pytest.mark.slow
@every_vocabulary
@pytest.mark.parametrize("corpus_name", CORPORA)
def test_ids_of_a_whole_corpus_equal_tiktoken(name: str, corpus_name: str) -> None:
    assert_ids_equal(name, corpus(corpus_name, None))


@every_vocabulary
@generated(2_000)
@given(text=any_text())
def test_ids_of_generated_text_equal_tiktoken(name: str, text: str) -> None:
    check_generated(name, text)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@every_vocabulary
@generated(200_000)
@given(text=any_text())
def test_ids_of_much_generated_text_equal_tiktoken(name: str, text: str) -> None:
    check_generated(name, text)


@every_vocabulary
def test_ids_of_every_prefix_equal_tiktoken(name: str) -> None:
    text = mixed_text()
    assert len(text.encode()) >= 2_048
    for end in range(len(text) + 1):
        check_generated(name, text[:end])


@every_vocabulary
@pytest.mark.parametrize("end", [0x20000, pytest.param(sys.maxunicode, marks=pytest.mark.slow)])
def test_ids_of_every_character_alone_equal_tiktoken(name: str, end: int) -> None:
    ours, twin = published(name)
    characters = [character for character in ALL_CHARACTERS if ord(character) <= end]
    alone = ours.encode_batch(characters)
    assert alone == [twin.encode_ordinary(character) for character in characters]


@every_vocabulary
def test_ids_of_every_character_in_context_equal_tiktoken(name: str) -> None:
    # The signs around a character show its class by where pieces end.
    ours, twin = published(name)
    for start in range(0, len(ALL_CHARACTERS), 4096):
        text = "".join(f"A{character}1{character}!" for character in ALL_CHARACTERS[start : start + 4096])
        assert ours.encode(text) == twin.encode_ordinary(text), hex(ord(ALL_CHARACTERS[start]))


@every_pattern
@generated(2_000)
@given(text=any_text())
def test_pieces_of_generated_text_equal_the_regex(pattern: str, text: str) -> None:
    check_pieces(pattern, text)


@every_pattern
def test_pieces_of_every_character_equal_the_regex(pattern: str) -> None:
    # Left out: what a newer Unicode than Python's has assigned or classed anew, for engines differ in age.
    category = unicodedata.category
    classed = {name: regex.compile(rf"\p{{{name}}}") for name in set(map(category, ALL_CHARACTERS)) - {"Cn", "Cs"}}
    assigned = [c for c in ALL_CHARACTERS if category(c) in classed and classed[category(c)].match(c)]
    for before, after in (("a", "b"), ("A", "B"), (" ", "1"), ("'", "'s"), ("\n", " "), ("\u0301", "/")):
        check_pieces(pattern, "".join(f"{before}{character}{after}" for character in assigned))


@every_pattern
def test_pieces_of_every_prefix_equal_the_regex(pattern: str) -> None:
    text = mixed_text()
    for end in range(len(text) + 1):
        check_pieces(pattern, text[:end])


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_published_expressions_are_known_by_name(pattern: str) -> None:
    name = {"llama3": "gpt4"}.get(pattern, pattern)
    assert bare(pattern).pattern == bare(PUBLISHED[pattern]).pattern == name


def test_every_name_is_a_setting() -> None:
    assert set(PUBLISHED) == set(get_args(PatternName))


CUSTOM = (r"\d+", r"[a-z]+|\s+$", r"(?=[A-Z])|\n", r"\p{N}{1,3}+|^ ", r"b*", r"(?i)ll|(?<!a)b", r"[\p{L}&&[^a-z]]+")


@pytest.mark.parametrize("pattern", CUSTOM)
@generated(500)
@given(text=any_text())
def test_pieces_of_a_custom_pattern_equal_hugging_face(pattern: str, text: str) -> None:
    pieces = [piece for piece, _ in pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)]
    assert bare(pattern).pieces(text) == pieces


def test_a_custom_pattern_survives_saving_and_is_said(tmp_path: Path) -> None:
    pattern = r"\d|[^\d\s]+| +(?=\S)"
    tokenizer = BPETokenizer.train_from_iterator([TRAINING_TEXT], vocab_size=400, pattern=pattern)
    assert (tokenizer.pattern, tokenizer.has_custom_pattern) == (pattern, True)
    tokenizer.save(tmp_path)
    again = BPETokenizer.from_pretrained(tmp_path)
    twin = HuggingFaceTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.pattern == pattern
    for text in SAMPLES.values():
        ids = tokenizer.encode(text, allow_special=True)
        assert again.encode(text, allow_special=True) == twin.encode(text).ids == ids


def test_long_documents_are_whole_for_a_custom_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "ab\nab\n" * 99
    tokenizer = BPETokenizer.train_from_iterator([text], vocab_size=300, pattern=r"[ab\n]+")
    monkeypatch.setattr("llm.data.readers.pieces.PIECE_BYTES", 8)
    ids = np.concatenate(list(encode_documents([text], tokenizer)))
    assert ids.tolist() == tokenizer.encode(text, add_eos=True)


def test_a_slash_after_a_line_end_stays_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "x;\n//y;\n\n/z\n" * 99
    tokenizer = BPETokenizer.train_from_iterator([text], vocab_size=300, pattern="o200k")
    monkeypatch.setattr("llm.data.readers.pieces.PIECE_BYTES", 8)
    ids = np.concatenate(list(encode_documents([text], tokenizer)))
    assert ids.tolist() == tokenizer.encode(text, add_eos=True)


def test_bad_patterns_are_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"`pattern` must be one of \"gpt2\", .* or a regular expression"):
        bare("gpt5")
    with pytest.raises(TokenizerError, match=r"`pattern` \"\(\" is not a regular expression: "):
        bare("(")
    with pytest.raises(TokenizerError, match=r"can't cut this text: .*\nhint: "):
        bare(r"(?:(a|aa|aaa)+)+(?=!)\1").encode("a" * 4_000)
