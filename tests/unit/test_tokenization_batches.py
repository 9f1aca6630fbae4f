"""Batches: threads, padding, and what a wrong batch says."""

import os
import signal
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from llm.errors import InvalidArgumentError
from llm.tokenization import BaseTokenizer, BPETokenizer
from tests.unit.test_tokenization_options import bpe, characters, every_tokenizer
from tests.unit.tokenization_samples import SAMPLES, TRAINING_TEXT, texts

rows_of_ids = st.lists(st.lists(st.integers(0, 399), max_size=9), max_size=5)


def slow_pad(rows: list[list[int]], pad_id: int, side: str, length: int) -> tuple[list[list[int]], list[list[int]]]:
    """The obvious twin of `pad`."""
    input_ids, mask = [], []
    for row in rows:
        filling = [pad_id] * (length - len(row))
        input_ids.append(filling + row if side == "left" else row + filling)
        mask.append([0] * len(filling) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(filling))
    return input_ids, mask


@given(
    rows=rows_of_ids,
    side=st.sampled_from(["left", "right"]),
    multiple=st.none() | st.integers(1, 8),
    fixed=st.none() | st.integers(9, 20),
    pad_id=st.integers(0, 399),
)
def test_padding_equals_the_slow_twin(
    rows: list[list[int]], side: Any, multiple: int | None, fixed: int | None, pad_id: int
) -> None:
    length = max(map(len, rows), default=0) if fixed is None else fixed
    while multiple is not None and length % multiple:
        length += 1
    batch = bpe().pad(rows, padding_side=side, pad_to_multiple_of=multiple, pad_to_length=fixed, pad_id=pad_id)
    input_ids, mask = slow_pad(rows, pad_id, side, length)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(rows), length)
    assert batch["input_ids"].tolist() == input_ids
    assert batch["attention_mask"].tolist() == mask
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == np.int64


@every_tokenizer
@given(
    batch=st.lists(texts(), max_size=5), side=st.sampled_from(["left", "right"]), cut=st.sampled_from(["left", "right"])
)
def test_padded_texts_are_the_encoded_texts_padded(make: Any, batch: list[str], side: Any, cut: Any) -> None:
    tokenizer: BaseTokenizer = make()
    rows = tokenizer.encode_batch(batch, add_bos=True, max_length=6, truncation=cut)
    padded = tokenizer.encode_padded(
        batch, add_bos=True, max_length=6, truncation=cut, padding_side=side, pad_id=3, num_threads=2
    )
    again = tokenizer.pad([np.array(row, np.uint32) for row in rows], padding_side=side, pad_id=3)
    for name, array in padded.items():
        np.testing.assert_array_equal(array, again[name])
    is_token = padded["attention_mask"].astype(bool)
    assert [ids[mask].tolist() for ids, mask in zip(padded["input_ids"], is_token, strict=True)] == rows


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_equals_transformers(side: Any, tmp_path: Any) -> None:
    tokenizer = BPETokenizer.train_from_iterator([TRAINING_TEXT], vocab_size=400, special_tokens=["<|pad|>"])
    tokenizer.save(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path, padding_side=side, truncation_side=side)
    batch = list(SAMPLES.values())
    ours = tokenizer.encode_padded(batch, padding_side=side, max_length=48, truncation=side, pad_to_multiple_of=8)
    expected = theirs(batch, padding=True, truncation=True, max_length=48, pad_to_multiple_of=8, return_tensors="np")
    np.testing.assert_array_equal(ours["input_ids"], expected["input_ids"])
    np.testing.assert_array_equal(ours["attention_mask"], expected["attention_mask"])


def test_a_padded_batch_is_what_torch_takes() -> None:
    batch = bpe().encode_padded(["a", "a b c"], pad_id=0)
    input_ids = torch.from_numpy(batch["input_ids"])
    assert torch.nn.Embedding(400, 2)(input_ids).shape == (2, input_ids.shape[1], 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"padding needs a tokenizer with a pad token, got one without\nhint: pass `pad_id`"),
        (
            {"pad_id": 0, "pad_to_length": 2},
            r"at most `pad_to_length` \(2\) ids, got 3 in row 1\nhint: set `max_length`",
        ),
        ({"pad_id": 0, "pad_to_length": 0}, r"`pad_to_length` must be a whole number from 1 on or None, got 0"),
        ({"pad_id": 0, "pad_to_multiple_of": -8}, r"`pad_to_multiple_of` must be a whole number from 1 on"),
        ({"pad_id": 0, "padding_side": "both"}, r"`padding_side` must be one of \['left', 'right'\], got 'both'"),
    ],
)
def test_bad_padding_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        bpe().pad([[1], [1, 2, 3], []], **options)
    with pytest.raises(InvalidArgumentError, match=message):
        characters().encode_padded(["a", "abc", ""], **options)
    with pytest.raises(TypeError, match=r"unknown option 'pad_too'"):
        bpe().pad([[1]], pad_id=0, pad_too=1)


@every_tokenizer
def test_bad_batches_are_named(make: Any) -> None:
    tokenizer: BaseTokenizer = make()
    with pytest.raises(InvalidArgumentError, match=r"`texts` must be a collection of texts, got one `str`\nhint"):
        tokenizer.encode_batch("abc")
    with pytest.raises(InvalidArgumentError, match=r"without lone surrogates"):
        tokenizer.encode_batch(["a", "\udfff"])
    for wrong in (0, -2):
        with pytest.raises(InvalidArgumentError, match=rf"`num_threads` must be .*, got {wrong}"):
            tokenizer.encode_batch(["a"], num_threads=wrong)
        with pytest.raises(InvalidArgumentError, match=rf"`num_threads` must be .*, got {wrong}"):
            tokenizer.encode_batch_flat(["a"], num_threads=wrong)
        with pytest.raises(InvalidArgumentError, match=rf"`num_threads` must be .*, got {wrong}"):
            tokenizer.decode_batch([[1]], num_threads=wrong)
    with pytest.raises(InvalidArgumentError, match=r"got 4000 at index 1"):
        tokenizer.decode_batch([[1], [2, 4000]])


def test_a_bad_row_is_named_by_its_place() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^item 2 of the batch: token ids must be ids .* 4000 at index 1"):
        bpe().decode_batch([[], [1], [2, 4000]], num_threads=2)


def large_batch() -> list[str]:
    return [TRAINING_TEXT[start : start + 900] for start in range(1200)] + [TRAINING_TEXT * 40, ""]


@pytest.mark.parametrize("num_threads", [None, 1, 2, 5])
def test_large_batches_keep_their_order_on_any_number_of_threads(num_threads: int | None) -> None:
    batch = large_batch()
    rows = [bpe().encode(text, add_eos=True) for text in batch]
    assert bpe().encode_batch(batch, num_threads=num_threads, add_eos=True) == rows
    assert bpe().decode_batch(rows, num_threads=num_threads, skip_special_tokens=True) == batch


def test_python_threads_share_a_tokenizer() -> None:
    batch, found = large_batch(), {}

    def work(name: int) -> None:
        found[name] = bpe().encode_batch(batch, num_threads=2)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[name] == found[0] for name in range(4))
    assert found[0] == [bpe().encode(text) for text in batch]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    batch = large_batch()
    rows = bpe().encode_batch(batch, num_threads=2)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a pool whose threads stayed behind would wait for ever
        os._exit(0 if bpe().encode_batch(batch, num_threads=2) == rows else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
