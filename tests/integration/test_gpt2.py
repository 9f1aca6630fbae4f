"""GPT-2's published vocabulary: our splitting and merging give everybody's ids."""

import json
from pathlib import Path

import pytest
import tiktoken

from llm import _rust
from llm.demo import demo_corpus

CACHE = Path(__file__).parents[2] / ".cache"
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
TEXTS = [
    "Hello, world! It's 2 o'clock; they'll've gone  home.\n\n\tIndented\r\n   ",
    "Ünïcödé 漢字かな 한국어 العربية עברית ไทย 🙂👩‍👩‍👧 e\u0301 ½²Ⅷ १२३",
    "def f(x):\n    return {'a': x**2, \"b\": [1, 2.5e-3]}  # <|endoftext|> is text here\n",
    "\x00\x01\u200b\ufeff\u2028 \u00a0\u3000x",
]


@pytest.fixture(scope="module")
def merges() -> list[tuple[str, str]]:
    file = CACHE / "vocab.bpe"
    if not file.is_file():
        pytest.fail(f"{file} is missing: run `make test-data`")
    return [tuple(line.split(" ")) for line in file.read_text(encoding="utf-8").splitlines()[1:]]


@pytest.fixture(scope="module")
def ranks(merges: list[tuple[str, str]]) -> list[bytes]:
    """Bytes of each id: printable bytes first, as GPT-2 numbers them, then the merges in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable} | {chr(256 + idx): byte for idx, byte in enumerate(others)}
    merged = [bytes(letters[letter] for letter in first + second) for first, second in merges]
    return [bytes([byte]) for byte in printable + others] + merged


def test_the_published_table_is_the_one_built_here(ranks: list[bytes]) -> None:
    table = json.loads((CACHE / "encoder.json").read_text(encoding="utf-8"))
    assert len(ranks) == 50_256
    assert table["<|endoftext|>"] == 50_256
    assert table["hello"] == ranks.index(b"hello")


def test_ids_equal_tiktokens(ranks: list[bytes]) -> None:
    special = {"<|endoftext|>": 50_256}
    ours = _rust.Tokenizer.from_ranks(ranks, special, "gpt2")
    table = {token: rank for rank, token in enumerate(ranks)}
    theirs = tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=table, special_tokens=special)
    for text in [*TEXTS, demo_corpus()]:
        assert ours.encode(text) == theirs.encode_ordinary(text)
        assert ours.decode(ours.encode(text)) == text
    assert ours.encode(TEXTS[2], allow_special=True) == theirs.encode(TEXTS[2], allowed_special="all")
