"""Texts and tokenizers that several tokenizer tests share."""

import functools
from typing import Any

import tiktoken
from hypothesis import strategies as st

from llm.tokenization import BPETokenizer
from tests.reference import bpe as reference

PATTERNS = tuple(reference.PATTERNS)
BYTES = [bytes([byte]) for byte in range(256)]
RANKS = {token: rank for rank, token in enumerate([*BYTES, b"ab", b"abc"])}

TRAINING_TEXT = (
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\n"
    "All:\nSpeak, speak. I'm, we'll, they've, IT'S.\n\n"
    "Der Fluß ist größer als die Straße, 2024 kostete er 1234567 Euro.\r\nL'été arrivé, où êtes-vous ?\n"
    "吾輩は猫である。名前はまだ無い。どこで生れたか頓と見当がつかぬ。\nमेरा नाम क्या है? 😀😀 👩‍👩‍👧\n"
    "\tfor (int i = 0; i < 10; ++i) {\n\t\tsum += values[i];\n\t}\n    return sum;\n"
    + "ab" * 40
    + " " * 9
    + "aaaaaaaaaaa\n"
) * 3

SAMPLES = {
    "empty": "",
    "english": "Speak, speak. We'll proceed; THEY'VE heard IT's further!",
    "multilingual": "größer où 吾輩は猫である नाम Ελλάδα русский עברית العربية 한국어 ไทย",
    "emoji": "👩‍👩‍👧 😀🏳️‍🌈 e\u0301 ﷺ",
    "numbers": "1 12 123 1234 ½ Ⅷ ٣٤٥٦ 1,234.5",
    "control characters": "\0\x01\x1b[0m\x7f\x85\x1c\u2028\u2029\ufeff\u200b",
    "white space": "  a \t\n\n  b\r\n\r\n \u3000 c   \n \n  ",
    "long s": "it'\u017f I'\u017f \u017f\u017f '\u017fa",
    "long runs": "a" * 300 + " " * 300 + "\n" * 300 + "!" * 300 + "7" * 300 + "ab" * 300,
    "special text": "a <|endoftext|> b <|endoftext|",
    "not characters": "\ue000\U000f0000\U0010ffff\ufffe",
}

_BORDER_CHARACTERS = (
    "ab sStTrReEvVmMlLdD'\u017f0-9½Ⅷ٣.,!?é語ß\u0301😀 \n\r\t\x0b\x0c\x1c\x85\xa0\u180e\u2003\u2028\u3000\u200b\0"
)


def texts() -> st.SearchStrategy[str]:
    """Any text, and text full of borders between pieces.

    Code points that no Unicode version has assigned yet are left out: engines of different age class them differently.
    """
    assigned = st.characters(exclude_categories=["Cs", "Cn"])
    return st.text(assigned, max_size=60) | st.text(st.sampled_from(_BORDER_CHARACTERS), max_size=60)


@functools.cache
def trained(pattern: str) -> BPETokenizer:
    return BPETokenizer.train_from_iterator([TRAINING_TEXT], vocab_size=500, pattern=pattern)


@functools.cache
def tiktoken_twin(pattern: str) -> tiktoken.Encoding:
    tokenizer = trained(pattern)
    special = tokenizer.special_tokens
    ranks = {token: rank for rank, token in enumerate(tokenizer.token_bytes()) if rank not in special.values()}
    return tiktoken.Encoding(
        pattern, pat_str=reference.PATTERNS[pattern], mergeable_ranks=ranks, special_tokens=special
    )


def assert_same(one: Any, other: Any, *, allow_special: bool = True) -> None:
    for text in SAMPLES.values():
        assert one.encode(text, allow_special=allow_special) == other.encode(text, allow_special=allow_special)
