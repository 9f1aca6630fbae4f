"""Hugging Face tokenizers of many makes, and text to try them on, for the tests of formats."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llm.tokenization import BPETokenizer
from tests.unit.tokenization_samples import TRAINING_TEXT

ADDED = ("<|endoftext|>", "<s>", "</s>", "<unk>", "<0x0A>", "[W]", "<x>", "  ", "ex", " the", "\n\n")
WORDS = ("the", "quick", "größer", "吾輩は", "नाम", " hello", " world", "▁▁", "12345", "a", "  ", "\n", "x", "<", "_")
# With every flag. Contents of more than ASCII are left to `test_added_tokens_decode_to_their_text`.
FLAGGED = (
    AddedToken("[W]", single_word=True, special=True),
    AddedToken("<x>", lstrip=True, special=False, normalized=False),
    AddedToken("ex", rstrip=True, special=False, normalized=False),
    AddedToken("  ", special=False, normalized=False),
    AddedToken(" the", lstrip=True, rstrip=True, special=True),
    AddedToken("<0x0A>", single_word=True, rstrip=True, special=False, normalized=True),
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def any_text() -> st.SearchStrategy[str]:
    """Text full of borders, words and added tokens. Characters are of Unicode 9 or older: engines differ in age."""
    borders = "ab sStTrReE'09½Ⅷ٣.,/!?éßǅʰ語\u0301\u0903😀 \n\r\t\x0b\x85\xa0\u2003\u2028\u3000\u200b\0▁<>|_"
    old = st.characters(exclude_categories=["Cs", "Cn"], max_codepoint=0x3FF) | st.characters(
        min_codepoint=0x3040, max_codepoint=0x9FD5, exclude_categories=["Cs", "Cn"]
    )
    run = st.builds(lambda character, length: character * length, st.sampled_from(borders), st.integers(1, 40))
    part = st.text(st.sampled_from(borders), max_size=8) | st.text(old, max_size=8) | run
    return st.lists(part | st.sampled_from(ADDED) | st.sampled_from(WORDS), max_size=10).map("".join)


def byte_level(
    pre_tokenizer: Any = None,
    normalizer: Any = None,
    *,
    special: Sequence[str] = ("<|endoftext|>", "<s>", "</s>"),
    special_last: bool = False,
    added: Sequence[AddedToken] = (),
    post_processor: Any = None,
    all_bytes: bool = True,
) -> Tokenizer:
    """A byte-level BPE trained by Hugging Face, special tokens first unless told."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[] if special_last else list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if all_bytes else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TRAINING_TEXT], trainer)
    if special_last:
        tokenizer.add_special_tokens(list(special))
    add(tokenizer, added)
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return tokenizer


def add(tokenizer: Tokenizer, added: Sequence[AddedToken]) -> None:
    for token in added:
        if token.special:
            tokenizer.add_special_tokens([token])
        else:
            tokenizer.add_tokens([token])


def sentence_piece(
    normalizer: Any = None,
    pre_tokenizer: Any = None,
    decoder: Any = None,
    *,
    num_bytes: int = 256,
    added: Sequence[AddedToken] = (),
    **model: Any,
) -> Tokenizer:
    """A BPE on characters with byte fallback in Llama 2's layout: `<unk>`, `<s>`, `</s>`, bytes, pieces."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(num_bytes))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, limit_alphabet=60, show_progress=False)
    tokenizer.train_from_iterator([TRAINING_TEXT], trainer)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = document["added_tokens"][:3]
    document["model"] |= model
    document["pre_tokenizer"] = None
    if pre_tokenizer is not None:
        document["normalizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(document))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder or decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    add(tokenizer, added)
    tokenizer.post_processor = template("<s> $A", 1)
    return tokenizer


def template(single: str, first_id: int) -> Any:
    ids = {"<s>": first_id, "</s>": first_id + 1}
    used = [(token, token_id) for token, token_id in ids.items() if token in single]
    return processors.TemplateProcessing(single=single, pair=f"{single} $B:1", special_tokens=used)


def split(pattern: Any, behavior: str = "isolated", invert: bool = False) -> Any:
    pattern = Regex(pattern) if pattern != " " else pattern
    return pre_tokenizers.Split(pattern, behavior, invert)


def in_bytes(*stages: Any) -> Any:
    """These stages, then bytes."""
    return pre_tokenizers.Sequence([*stages, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_GEMMA_DECODER = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse())
# Each make by its name.
MAKES: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": byte_level,
    "prefix space": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "smollm": lambda: byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        all_bytes=False,
    ),
    "groups of digits": lambda: byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(False), pre_tokenizers.ByteLevel(add_prefix_space=True)])
    ),
    "qwen2": lambda: byte_level(in_bytes(split(QWEN2)), normalizers.NFC(), special_last=True),
    "deepseek": lambda: byte_level(
        in_bytes(
            split("[\r\n]"),
            split(r"\s?\p{L}+"),
            split(r"\s?\p{P}+"),
            split("[一-龥ࠀ-一가-퟿]+"),
            pre_tokenizers.Digits(True),
        )
    ),
    "gpt-neox": lambda: byte_level(
        normalizer=normalizers.NFC(),
        special=("<|endoftext|>", "<|padding|>"),
        added=[AddedToken(" " * length, normalized=True, special=False) for length in range(24, 1, -1)],
    ),
    "other normalizers": lambda: byte_level(
        normalizer=normalizers.Sequence(
            [
                normalizers.NFKC(),
                normalizers.Lowercase(),
                normalizers.Replace("a", "bb"),
                normalizers.Strip(),
                normalizers.Prepend("x"),
            ]
        )
    ),
    "decomposed": lambda: byte_level(normalizer=normalizers.NFD(), added=FLAGGED[:-1]),
    "every flag": lambda: byte_level(added=FLAGGED),
    "llama3's post-processor": lambda: byte_level(
        post_processor=processors.Sequence([processors.ByteLevel(trim_offsets=False), template("<s> $A", 1)])
    ),
    "roberta's post-processor": lambda: byte_level(
        post_processor=processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    ),
    "llama2": sentence_piece,
    "llama2 with every flag": lambda: sentence_piece(added=FLAGGED[:-1]),
    "gemma": lambda: sentence_piece(
        normalizers.Replace(" ", "▁"),
        pre_tokenizers.Split(" ", "merged_with_previous"),
        decoders.Sequence(list(_GEMMA_DECODER)),
    ),
    "mistral": lambda: sentence_piece(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "metaspace first": lambda: sentence_piece(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first"), added=FLAGGED[:-1]
    ),
    "metaspace always": lambda: sentence_piece(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always"), decoder=decoders.Metaspace()
    ),
    "metaspace never": lambda: sentence_piece(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="never"),
        decoder=decoders.Metaspace(prepend_scheme="never"),
    ),
    "unknown tokens fused": lambda: sentence_piece(byte_fallback=False),
    "unknown tokens apart": lambda: sentence_piece(byte_fallback=False, fuse_unk=False),
    "unknown tokens left out": lambda: sentence_piece(byte_fallback=False, unk_token=None),
    "some bytes": lambda: sentence_piece(num_bytes=200),
    "some bytes, unknown apart": lambda: sentence_piece(num_bytes=200, fuse_unk=False),
    "whole pieces first": lambda: sentence_piece(ignore_merges=True),
}
for _behavior in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"):
    for _invert in (False, True):
        for _pattern in (r"\d|(?=b)|\s+", r"\s+", " ", QWEN2):
            MAKES[f"{_behavior}{' inverted' * _invert} {_pattern[:12]}"] = lambda p=_pattern, b=_behavior, i=_invert: (
                byte_level(in_bytes(split(p, b, i)))
            )


def saved(make: str, directory: Path) -> BPETokenizer:
    """One of Hugging Face's makes, opened from its file."""
    MAKES[make]().save(str(directory / "tokenizer.json"))
    return BPETokenizer.from_pretrained(directory)
