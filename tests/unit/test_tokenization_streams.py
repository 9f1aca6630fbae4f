"""Streams of ids, and offsets of tokens in the text."""

import functools
import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models, normalizers, trainers

from llm import _rust
from llm.errors import InvalidArgumentError
from llm.tokenization import BaseTokenizer, BPETokenizer
from tests.unit.test_tokenization_options import bpe, characters, every_tokenizer, names, texts_with_special, twin
from tests.unit.tokenization_samples import SAMPLES, texts


@every_tokenizer
@given(ids=st.lists(st.integers(0, 60) | st.integers(128, 255), max_size=30), skip=st.booleans())
def test_parts_of_a_stream_are_the_decoded_text(make: Any, ids: list[int], skip: bool) -> None:
    tokenizer: BaseTokenizer = make()
    ids = [token_id % tokenizer.vocab_size for token_id in ids]
    whole = tokenizer.decode(ids, skip_special_tokens=skip)
    stream = tokenizer.decode_stream(skip_special_tokens=skip)
    assert "".join([*map(stream.push, ids), stream.finish()]) == whole
    parts = list(tokenizer.decode_stream(iter(ids), skip_special_tokens=skip))
    assert "".join(parts) == whole
    assert "" not in parts


@given(text=texts())
def test_a_stream_never_shows_half_a_character(text: str) -> None:
    stream = bpe().decode_stream()
    ids = [byte_id for byte in text.encode() for byte_id in [bpe().token_to_id(bytes([byte]))]]
    seen = ""
    for count, token_id in enumerate(ids, 1):
        seen += stream.push(token_id)
        # All characters that are complete have come, and nothing else: the most a stream can know.
        assert seen == text.encode()[:count].decode(errors="ignore")
    assert stream.finish() == ""
    assert seen == text


@given(text=texts_with_special)
def test_streams_round_trip(text: str) -> None:
    for tokenizer in (bpe(), characters()):
        ids = tokenizer.encode(text, allow_special=True)
        assert "".join(tokenizer.decode_stream(ids)) == tokenizer.decode(ids)
    assert "".join(bpe().decode_stream(bpe().encode_to_numpy(text))) == text


def test_a_stream_takes_ids_as_they_come() -> None:
    taken = []

    def arriving() -> Any:
        for token_id in bpe().encode("größer"):
            taken.append(token_id)
            yield token_id

    parts = bpe().decode_stream(arriving())
    assert next(parts)
    assert len(taken) == 1


def test_an_incomplete_character_shows_only_at_the_end() -> None:
    stream = bpe().decode_stream()
    first, second, third = (bpe().token_to_id(bytes([byte])) for byte in "語".encode())
    assert [stream.push(first), stream.push(second)] == ["", ""]
    assert stream.finish() == "\ufffd"
    assert [stream.push(first), stream.push(second), stream.push(third)] == ["", "", "語"]


def test_unknown_ids_are_named_and_change_nothing() -> None:
    stream = bpe().decode_stream()
    first, *rest = (bpe().token_to_id(bytes([byte])) for byte in "語".encode())
    stream.push(first)
    for wrong in (-1, 400, 2**40):
        with pytest.raises(InvalidArgumentError, match=rf"ids of this tokenizer \(0 to 399\), got {wrong}"):
            stream.push(wrong)
    assert "".join(map(stream.push, rest)) == "語"
    with pytest.raises(InvalidArgumentError, match=r"got 400"):
        list(bpe().decode_stream([1, 400]))


@every_tokenizer
@given(text=texts_with_special, allowed=names)
def test_offsets_slice_the_text_to_the_tokens(make: Any, text: str, allowed: Any) -> None:
    tokenizer: BaseTokenizer = make()
    ids, byte_offsets, char_offsets = tokenizer.encode_with_offsets(text, allowed_special=allowed)
    assert ids.tolist() == tokenizer.encode(text, allowed_special=allowed)
    assert byte_offsets.shape == char_offsets.shape == (len(ids), 2)
    assert byte_offsets.dtype == char_offsets.dtype == np.int64
    assert all(stop == start for (_, stop), (start, _) in pairwise(byte_offsets.tolist()))
    raw = text.encode()
    # The obvious twin: the character that a byte is part of.
    char_of_byte = [index for index, character in enumerate(text) for _ in character.encode()]
    unknown = tokenizer.special_tokens["<|unk|>"]
    for token_id, (start, stop), (first, last) in zip(ids, byte_offsets, char_offsets, strict=True):
        if token_id != unknown:
            assert raw[start:stop] == tokenizer.id_to_bytes(token_id)
        assert (first, last) == (char_of_byte[start], char_of_byte[stop - 1] + 1)
    if len(ids):
        assert (byte_offsets[0, 0], byte_offsets[-1, 1]) == (0, len(raw))


def hugging_face(tokenizer: BaseTokenizer) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer.from_str(tokenizer.to_json().replace('"trim_offsets": true', '"trim_offsets": false'))


@pytest.mark.parametrize("name", SAMPLES)
def test_offsets_of_samples_equal_hugging_face(name: str) -> None:
    text = SAMPLES[name]
    found = hugging_face(bpe()).encode(text, add_special_tokens=False)
    ours = bpe().encode_with_offsets(text, allow_special=True)
    assert ours.ids.tolist() == found.ids
    assert [tuple(pair) for pair in ours.char_offsets.tolist()] == found.offsets


@given(text=texts_with_special)
def test_offsets_equal_hugging_face_and_tiktoken(text: str) -> None:
    ours = bpe().encode_with_offsets(text, allow_special=True)
    assert [tuple(pair) for pair in ours.char_offsets.tolist()] == hugging_face(bpe()).encode(text).offsets
    decoded, starts = twin().decode_with_offsets(ours.ids.tolist())
    assert decoded == text
    assert ours.char_offsets[:, 0].tolist() == starts


@every_tokenizer
def test_offsets_follow_truncation_and_leave_added_tokens_at_zero(make: Any) -> None:
    tokenizer: BaseTokenizer = make()
    text = "größer Straße"
    whole = tokenizer.encode_with_offsets(text)
    cut = tokenizer.encode_with_offsets(text, add_bos=True, add_eos=True, max_length=5, truncation="left")
    assert cut.ids.tolist() == tokenizer.encode(text, add_bos=True, add_eos=True, max_length=5, truncation="left")
    assert cut.byte_offsets.tolist() == [[0, 0], *whole.byte_offsets[-3:].tolist(), [0, 0]]
    assert cut.char_offsets.tolist() == [[0, 0], *whole.char_offsets[-3:].tolist(), [0, 0]]


def test_offsets_need_the_tokens_to_be_the_text() -> None:
    table = _rust.TokenTable(["é".encode(), b"a"], [])
    for text in ("ae\u0301", "aé!", "a"):
        with pytest.raises(InvalidArgumentError, match=r"got a difference at index [12]\nhint: .*normalise"):
            table.offsets([1, 0], text)


@functools.cache
def sentencepiece() -> tuple[BPETokenizer, HuggingFaceTokenizer]:
    """As in Llama 2: a space before the text, bytes for characters that are no token."""
    learned = HuggingFaceTokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", "▁")
    learned.train_from_iterator(
        ["to be or not to be, größer"] * 5, trainers.BpeTrainer(vocab_size=60, show_progress=False)
    )
    model = json.loads(learned.to_str())["model"]
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    twin = HuggingFaceTokenizer(
        models.BPE(
            vocab={name: index for index, name in enumerate(names)},
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    twin.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    twin.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    twin.add_special_tokens(["<unk>"])
    return BPETokenizer(_rust.Tokenizer.from_json(twin.to_str())), twin


@given(text=texts())
def test_streams_and_offsets_leave_out_a_space_that_was_put_before_the_text(text: str) -> None:
    tokenizer, twin = sentencepiece()
    ids = tokenizer.encode(text)
    assert ids == twin.encode(text).ids
    assert "".join(tokenizer.decode_stream(ids)) == tokenizer.decode(ids) == twin.decode(ids)
    assert tokenizer.decode_batch([ids, ids], num_threads=2) == [tokenizer.decode(ids)] * 2
    assert tokenizer.decode(ids) == text
    found = tokenizer.encode_with_offsets(text)
    assert [tuple(pair) for pair in found.char_offsets.tolist()] == twin.encode(text).offsets
