"""Text, shards, windows, order."""

import numpy as np
import pytest
import torch

from llm.data import BatchLoader, SyntheticDataModule, in_order
from llm.data.readers import pieces
from llm.data.samples import Mixture, TokenCrops, TokenWindows
from llm.data.tokenize import encode_documents
from llm.errors import DataError
from llm.tokenization import BPETokenizer


def test_windows_predict_every_token_but_the_first_exactly_once() -> None:
    tokens = np.arange(23, dtype=np.uint16)
    windows = TokenWindows(tokens, context_length=5, keep_rest=True)
    batch = windows.batch(np.arange(len(windows)))
    assert batch.labels.tolist() == list(range(1, 23))
    assert batch.token_ids.tolist() == list(range(22))
    assert batch.lengths == (5, 5, 5, 5, 2)
    assert len(TokenWindows(tokens, 5, keep_rest=False)) == 4


def test_crops_begin_at_any_token_and_an_epoch_is_as_long_as_the_text() -> None:
    crops = TokenCrops(np.arange(23, dtype=np.uint16), context_length=5)
    assert (len(crops), crops.epoch_samples) == (18, 4)
    assert crops.batch(np.array([0, 17])).labels.tolist() == [1, 2, 3, 4, 5, 18, 19, 20, 21, 22]
    mixed = Mixture([crops, crops], ["a", "b"])
    assert (len(mixed), mixed.epoch_samples) == (36, 8)
    loader = BatchLoader(crops, batch_size=2, seed=0)
    assert loader.steps_per_epoch == 2
    starts = [int(loader.part(step, 0).token_ids[at]) for step in range(9) for at in (0, 5)]
    assert sorted(starts) == list(range(18))


def test_parts_of_a_batch_are_the_batch() -> None:
    dataset = SyntheticDataModule(32, context_length=4).train_dataset()
    whole = BatchLoader(dataset, batch_size=8, seed=3)
    for parts in (2, 3, 4, 5, 8):
        cut = BatchLoader(dataset, batch_size=8, seed=3, parts=parts)
        for step in (0, 3, 4, 11):
            pieces = [cut.part(step, idx).token_ids for idx in range(parts)]
            assert torch.equal(torch.cat(pieces), whole.part(step, 0).token_ids)


def test_an_epoch_sees_every_sample_once_and_the_next_in_another_order() -> None:
    dataset = SyntheticDataModule(32, context_length=4, vocab_size=10_000).train_dataset()
    loader = BatchLoader(dataset, batch_size=8, seed=0)
    epochs = [torch.cat([loader.part(step, 0).token_ids for step in range(start, start + 4)]) for start in (0, 4)]
    every = torch.cat([batch.token_ids for batch in in_order(dataset, 8)])
    assert not torch.equal(epochs[0], epochs[1])
    for epoch in epochs:
        assert epoch.sort().values.equal(every.sort().values)


def test_any_step_is_found_without_the_ones_before() -> None:
    dataset = SyntheticDataModule(64, context_length=4).train_dataset()
    walked, jumped = BatchLoader(dataset, 8, seed=1), BatchLoader(dataset, 8, seed=1)
    batches = [walked.part(step, 0).token_ids for step in range(30)]
    for step in (29, 7, 16):
        assert torch.equal(jumped.part(step, 0).token_ids, batches[step])


def test_processes_share_validation_without_overlap() -> None:
    dataset = SyntheticDataModule(22, context_length=3).train_dataset()
    alone = torch.cat([batch.token_ids for batch in in_order(dataset, 4)])
    shared = [torch.cat([batch.token_ids for batch in in_order(dataset, 4, rank, 2)]) for rank in range(2)]
    assert sorted(torch.cat(shared).tolist()) == sorted(alone.tolist())


def test_long_documents_are_encoded_in_pieces_with_the_same_ids(monkeypatch: pytest.MonkeyPatch, corpus_text) -> None:
    for pattern in ("gpt2", "gpt4"):
        tokenizer = BPETokenizer.train_from_iterator(
            [corpus_text[:20_000]], vocab_size=400, pattern=pattern, progress=False
        )
        text = corpus_text[:5_000] + "  \n \n\n  x!\n\n?\n" + corpus_text[5_000:9_000]
        whole = [*tokenizer.encode(text), *tokenizer.eos_ids[:1]]
        monkeypatch.setattr(pieces, "PIECE_BYTES", 64)
        assert np.concatenate(list(encode_documents([text], tokenizer))).tolist() == whole


def test_fewer_samples_than_a_batch_are_refused() -> None:
    dataset = SyntheticDataModule(4).train_dataset()
    with pytest.raises(DataError, match="has 4 samples, fewer than one batch of 8"):
        BatchLoader(dataset, 8, seed=0)
    with pytest.raises(DataError, match=r"gradient_accumulation_steps \(3\), got 2"):
        BatchLoader(dataset, 2, seed=0, parts=3)
