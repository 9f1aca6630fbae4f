"""Offsets of tokens in the text before normalisation, as `tokenizers` gives them."""

import functools

import pytest
from hypothesis import HealthCheck, given, settings
from tokenizers import Tokenizer as HuggingFaceTokenizer

from llm import _rust
from llm.tokenization import BPETokenizer
from tests.unit.tokenization_files import MAKES, any_text


@functools.cache
def twins(make: str) -> tuple[BPETokenizer, HuggingFaceTokenizer]:
    text = MAKES[make]().to_str()
    theirs = HuggingFaceTokenizer.from_str(text.replace('"trim_offsets":true', '"trim_offsets":false'))
    return BPETokenizer(_rust.Tokenizer.from_json(text)), theirs


@pytest.mark.parametrize(("make", "text"), [("qwen2", "ae\u0301"), ("llama2", "a語b"), ("gemma", " a  b")])
def test_offsets_refer_to_the_text_before_normalisation(make: str, text: str) -> None:
    ours, theirs = twins(make)
    found = ours.encode_with_offsets(text, allow_special=True)
    assert [tuple(pair) for pair in found.char_offsets.tolist()] == theirs.encode(
        text, add_special_tokens=False
    ).offsets


# Vocabularies that drop characters: `tokenizers` does not count those, so its later offsets are too low.
DROPPING = {"smollm", "unknown tokens left out"}


@pytest.mark.long
@pytest.mark.parametrize("make", MAKES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=any_text())
def test_offsets_equal_hugging_face(make: str, text: str) -> None:
    ours, theirs = twins(make)
    expected = theirs.encode(text, add_special_tokens=False)
    found = ours.encode_with_offsets(text, allow_special=True)
    assert found.ids.tolist() == expected.ids
    offsets = [tuple(pair) for pair in found.char_offsets.tolist()]
    if make not in DROPPING:
        assert offsets == expected.offsets
    assert all(0 <= start <= end <= len(text) for start, end in offsets)


def test_offsets_leave_out_dropped_characters() -> None:
    ours, theirs = twins("unknown tokens left out")
    text = "to☃ be"
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    found = ours.encode_with_offsets(text)
    starts = [start for start, _ in found.char_offsets.tolist()]
    assert (starts[0], found.char_offsets[-1, 1]) == (0, len(text))
    assert 2 not in starts  # the snowman's place
