"""Special tokens, BOS and EOS and truncation: equal to tiktoken and to obvious twins."""

import functools
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import InvalidArgumentError
from llm.tokenization import BaseTokenizer, BPETokenizer, SimpleCharacterTokenizer, TokenizerSettings
from tests.reference import bpe as reference
from tests.unit.tokenization_samples import TRAINING_TEXT, texts

SPECIAL = ("<|a|>", "<|b|>", "<|unk|>", "<|endoftext|>")
SETTINGS = TokenizerSettings(bos_token="<|a|>", eos_tokens=("<|b|>", "<|endoftext|>"), unk_token="<|unk|>")


@functools.cache
def bpe() -> BPETokenizer:
    tokenizer = BPETokenizer.train_from_iterator([TRAINING_TEXT], vocab_size=400, special_tokens=SPECIAL)
    tokenizer.settings = SETTINGS
    return tokenizer


@functools.cache
def characters() -> SimpleCharacterTokenizer:
    tokenizer = SimpleCharacterTokenizer.train(TRAINING_TEXT + "<|>", special_tokens=SPECIAL)
    tokenizer.settings = SETTINGS
    return tokenizer


@functools.cache
def twin() -> tiktoken.Encoding:
    special = bpe().special_tokens
    ranks = {token: rank for rank, token in enumerate(bpe().token_bytes()) if rank not in special.values()}
    return tiktoken.Encoding("gpt4", pat_str=reference.PATTERNS["gpt4"], mergeable_ranks=ranks, special_tokens=special)


every_tokenizer = pytest.mark.parametrize("make", [bpe, characters], ids=lambda make: make.__name__)
names = st.sets(st.sampled_from(SPECIAL))
texts_with_special = st.lists(texts() | st.sampled_from([*SPECIAL, "<|", "|>", "<|a|><|a"]), max_size=6).map("".join)


@given(
    text=texts_with_special,
    allowed=names | st.just("all"),
    disallowed=names | names.map(list) | st.just("all") | st.just(()),
)
def test_special_tokens_equal_tiktoken_for_every_choice(text: str, allowed: Any, disallowed: Any) -> None:
    chosen = {"allowed_special": allowed, "disallowed_special": disallowed}
    try:
        expected = twin().encode(text, **chosen)
    except ValueError:
        for encode in (bpe().encode, bpe().encode_to_numpy, bpe().encode_with_offsets, bpe().count_tokens):
            with pytest.raises(InvalidArgumentError, match=r"text must not have the special token \"<\|\w+\|>\""):
                encode(text, **chosen)
        with pytest.raises(InvalidArgumentError, match=r"^item 1 of the batch: text must not have"):
            bpe().encode_batch(["", text], **chosen)
        return
    assert bpe().encode(text, **chosen) == expected
    assert bpe().encode(text, allow_special=True) == twin().encode(text, allowed_special="all")


@pytest.mark.long
@every_tokenizer
@given(text=texts_with_special, allowed=names, disallowed=names)
def test_every_tokenizer_chooses_the_same_special_tokens(make: Any, text: str, allowed: Any, disallowed: Any) -> None:
    tokenizer: BaseTokenizer = make()
    chosen = {"allowed_special": allowed, "disallowed_special": disallowed}
    if any(token in text for token in disallowed):
        with pytest.raises(InvalidArgumentError, match=r"text must not have the special token"):
            tokenizer.encode(text, **chosen)
        return
    # The obvious twin: cut out the allowed tokens one after the other, the rest is ordinary.
    parts: list[str | int] = [text]
    for token in allowed:
        token_id = tokenizer.special_tokens[token]
        parts = [
            piece for part in parts for piece in (_cut(part, token, token_id) if isinstance(part, str) else [part])
        ]
    ids = [[part] if isinstance(part, int) else tokenizer.encode(part) for part in parts]
    assert tokenizer.encode(text, **chosen) == [token_id for part in ids for token_id in part]


def _cut(text: str, token: str, token_id: int) -> list[str | int]:
    pieces = text.split(token)
    return [part for piece in pieces[:-1] for part in (piece, token_id)] + pieces[-1:]


@every_tokenizer
def test_special_text_is_ordinary_unless_allowed_or_forbidden(make: Any) -> None:
    tokenizer: BaseTokenizer = make()
    text = "ab<|a|>c<|b|>"
    a, b = tokenizer.special_tokens["<|a|>"], tokenizer.special_tokens["<|b|>"]
    assert not {a, b} & set(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text, allowed_special={"<|b|>"}) == [*tokenizer.encode("ab<|a|>c"), b]
    assert tokenizer.encode(text, allowed_special="all", disallowed_special="all")[-1] == b
    with pytest.raises(InvalidArgumentError, match=r"token \"<\|b\|>\", got it at index 8\nhint: `allowed_special`"):
        tokenizer.encode(text, allowed_special=["<|a|>"], disallowed_special="all")
    with pytest.raises(InvalidArgumentError, match=r"\"secret\", got it at index 1"):
        tokenizer.encode("ésecret", disallowed_special={"secret"})


@every_tokenizer
@given(
    text=texts_with_special, bos=st.booleans(), eos=st.booleans(), limit=st.none() | st.integers(2, 12), data=st.data()
)
def test_truncation_keeps_bos_and_eos(
    make: Any, text: str, bos: bool, eos: bool, limit: int | None, data: st.DataObject
) -> None:
    tokenizer: BaseTokenizer = make()
    side = data.draw(st.sampled_from(["left", "right"]))
    before, after = [tokenizer.bos_id] * bos, [tokenizer.eos_ids[0]] * eos
    own = tokenizer.encode(text, allow_special=True)
    while limit is not None and len(before) + len(own) + len(after) > limit:
        own.pop(0 if side == "left" else -1)
    options: dict[str, Any] = {"add_bos": bos, "add_eos": eos, "max_length": limit, "truncation": side}
    ids = [*before, *own, *after]
    assert tokenizer.encode(text, allow_special=True, **options) == ids
    assert tokenizer.encode_to_numpy(text, allow_special=True, **options).tolist() == ids
    assert tokenizer.encode_batch([text, "", text], allow_special=True, **options)[::2] == [ids, ids]
    assert tokenizer.encode_with_offsets(text, allow_special=True, **options).ids.tolist() == ids
    assert tokenizer.count_tokens(text, allow_special=True, **options) == len(ids)


@every_tokenizer
@given(batch=st.lists(texts_with_special, max_size=5), num_threads=st.sampled_from([None, 1, 2, 3]))
def test_every_way_to_encode_agrees(make: Any, batch: list[str], num_threads: int | None) -> None:
    tokenizer: BaseTokenizer = make()
    for options in ({}, {"allowed_special": {"<|a|>"}, "add_eos": True, "max_length": 9, "truncation": "left"}):
        rows = [tokenizer.encode(text, **options) for text in batch]
        assert [tokenizer.encode_to_numpy(text, **options).tolist() for text in batch] == rows
        assert tokenizer.encode_batch(iter(batch), num_threads=num_threads, **options) == rows
        arrays = tokenizer.encode_batch_to_numpy(batch, num_threads=num_threads, **options)
        assert [array.tolist() for array in arrays] == rows
        assert all(array.dtype == np.uint32 for array in arrays)
        flat = tokenizer.encode_batch_flat(batch, num_threads=num_threads, **options)
        assert (flat.ids.dtype, flat.offsets.dtype, flat.offsets[0]) == (np.uint32, np.int64, 0)
        assert [flat.ids[start:stop].tolist() for start, stop in pairwise(flat.offsets)] == rows
        assert tokenizer.decode_batch(rows, num_threads=num_threads) == [tokenizer.decode(row) for row in rows]
        assert tokenizer.decode_batch(arrays, num_threads=num_threads) == [tokenizer.decode(row) for row in rows]


@every_tokenizer
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allowed_special": {"<|c|>"}}, r"`allowed_special` must be special tokens \(\['<\|a\|>', .* got '<\|c\|>'"),
        ({"allowed_special": "<|a|>"}, r"must be 'all' or a collection of special tokens, got '<\|a\|>'\nhint: pass"),
        ({"disallowed_special": None}, r"`disallowed_special` must be 'all' or a collection"),
        ({"disallowed_special": [b"x"]}, r"`disallowed_special` must have `str` entries, got b'x'"),
        ({"disallowed_special": [""]}, r"`disallowed_special` must not have an empty text"),
        ({"max_length": -1}, r"`max_length` must be a whole number from 0 on or None, got -1"),
        ({"max_length": 2.5}, r"`max_length` must be a whole number from 0 on or None, got 2\.5"),
        ({"max_length": 1, "add_bos": True, "add_eos": True}, r"room for the tokens added around a text \(2\), got 1"),
        ({"truncation": "middle"}, r"`truncation` must be one of \['left', 'right'\], got 'middle'"),
    ],
)
def test_bad_options_are_named(make: Any, options: dict[str, Any], message: str) -> None:
    for encode in (make().encode, make().encode_with_offsets, make().encode_to_numpy):
        with pytest.raises(InvalidArgumentError, match=message):
            encode("a", **options)
    with pytest.raises(InvalidArgumentError, match=message):
        make().encode_batch(["a"], **options)


@every_tokenizer
def test_unknown_options_are_named(make: Any) -> None:
    with pytest.raises(TypeError, match=r"unknown option 'add_boss'; options are add_bos, add_eos, allow_special"):
        make().encode("a", add_boss=True)


@every_tokenizer
def test_new_settings_count_at_once(make: Any) -> None:
    tokenizer: BaseTokenizer = pickle.loads(pickle.dumps(make()))
    a, b = tokenizer.special_tokens["<|a|>"], tokenizer.special_tokens["<|b|>"]
    assert tokenizer.encode("", add_bos=True) == [a]
    tokenizer.settings = TokenizerSettings(bos_token="<|b|>", unk_token="<|unk|>")
    assert tokenizer.encode("", add_bos=True) == [b]
    with pytest.raises(InvalidArgumentError, match=r"`add_eos` needs a tokenizer with a eos token"):
        tokenizer.encode("", add_eos=True)


@every_tokenizer
def test_many_different_options_are_not_kept_for_ever(make: Any) -> None:
    tokenizer: BaseTokenizer = pickle.loads(pickle.dumps(make()))
    for limit in range(300):
        assert tokenizer.count_tokens("a" * 300, max_length=limit) <= limit
    assert len(tokenizer._plans) <= 64


@every_tokenizer
def test_pickled_and_saved_tokenizers_are_the_same(make: Any, tmp_path: Path) -> None:
    tokenizer: BaseTokenizer = make()
    text = "größer <|a|> 吾輩 \u0378"
    tokenizer.save(tmp_path)
    for again in (pickle.loads(pickle.dumps(tokenizer)), type(tokenizer).from_pretrained(tmp_path)):
        assert again.settings.eos_tokens == SETTINGS.eos_tokens
        assert again.token_bytes() == tokenizer.token_bytes()
        assert again.encode(text, allow_special=True) == tokenizer.encode(text, allow_special=True)


def test_tokens_have_ids_and_ids_bytes() -> None:
    for tokenizer in (bpe(), characters()):
        for token_id, token in enumerate(tokenizer.token_bytes()):
            assert tokenizer.token_to_id(token) == token_id
            assert tokenizer.id_to_bytes(token_id) == token
        assert tokenizer.token_to_id("<|a|>") == tokenizer.special_tokens["<|a|>"]
        assert tokenizer.token_to_id("ß") == tokenizer.encode("ß")[0]
        assert tokenizer.token_to_id("no such token") is None
        assert len(tokenizer) == tokenizer.vocab_size
        with pytest.raises(InvalidArgumentError, match=r"got 4000 at index 0"):
            tokenizer.id_to_bytes(4000)


def test_a_tokenizer_shows_what_it_is() -> None:
    assert repr(bpe()) == (
        "BPETokenizer(vocab_size=400, pattern='gpt4', special_tokens=['<|a|>', '<|b|>', '<|unk|>', '<|endoftext|>'])"
    )
    many = SimpleCharacterTokenizer("ab", ["<|unk|>", *(f"<{number}>" for number in range(9))])
    assert repr(many) == (
        "SimpleCharacterTokenizer(vocab_size=12, special_tokens=['<|unk|>', '<0>', '<1>', '<2>', … 6 more])"
    )
