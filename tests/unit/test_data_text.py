"""From files to samples: scanned, tokenized once, found again, mended, mixed, packed, and within limits."""

import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm._rust import DocumentCutter
from llm.data.packing import pack
from llm.data.readers import ReadOptions
from llm.data.scan import remarks, scan_corpus, texts_of
from llm.data.shards import damage_of, open_ends, open_shard, write_shard
from llm.data.text import TextDataModule
from llm.data.tokenize import MANIFEST, mend_corpus
from llm.errors import ConfigError, DataError
from llm.models import DecoderModel
from llm.settings.merge import load_run_config
from llm.settings.model import ModelConfig
from llm.settings.run import DataConfig
from llm.settings.sources import SourceConfig
from llm.tokenization import BaseTokenizer, BlockIds, BPETokenizer
from llm.training.losses import token_losses

LINES = [f"Line {number} of a play.\n" for number in range(200)]


@pytest.fixture
def corpus(tmp_path: Path) -> DataConfig:
    """Two files of several documents."""
    (tmp_path / "a.txt").write_text("<|endoftext|>\n".join("".join(LINES[at : at + 10]) for at in range(0, 150, 10)))
    lines = [json.dumps({"body": "".join(LINES[at : at + 5])}) + "\n" for at in range(150, 200, 5)]
    (tmp_path / "b.jsonl").write_text("".join(lines))
    return DataConfig(paths=(str(tmp_path / "a.txt"),), validation_fraction=0.25)


def test_a_split_keeps_every_byte_and_the_number_held_out(tmp_path: Path, corpus: DataConfig) -> None:
    [source] = scan_corpus(corpus, tmp_path)
    parts = [
        "".join(piece.text for piece in texts_of(part, source.options)) for part in (source.train, source.validation)
    ]
    assert "".join(parts) == "".join(LINES[:150])
    assert len(parts[1]) == round(0.25 * len("".join(LINES[:150])))
    assert source.files[0].num_documents == 15
    assert [piece.ends for piece in texts_of(source.train, source.options)][-1]


def test_a_selection_of_texts_is_even_and_bounded(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    [source] = scan_corpus(DataConfig(paths=(str(tmp_path),), validation_fraction=0.0), tmp_path)
    taken = [piece.text for piece in texts_of(source.train, source.options, max_bytes=source.train[0].num_bytes // 4)]
    numbers = [LINES.index(text) for text in taken]
    assert 49 <= len(numbers) <= 51
    assert max(np.diff(numbers)) <= 5


def test_shards_are_named_by_what_they_are_made_from(tmp_path: Path, corpus: DataConfig, tiny_tokenizer) -> None:
    shared = msgspec.structs.replace(corpus, cache=str(tmp_path / "cache"))
    TextDataModule.prepare(tmp_path / "1", shared, tiny_tokenizer)
    shards = sorted((tmp_path / "cache").glob("*.bin"))
    written = [shard.stat().st_mtime_ns for shard in shards]
    assert len(shards) == 2
    (tmp_path / "a.txt").rename(tmp_path / "c.txt")
    renamed = msgspec.structs.replace(shared, paths=(str(tmp_path / "c.txt"),))
    TextDataModule.prepare(tmp_path / "2", renamed, tiny_tokenizer)
    assert [shard.stat().st_mtime_ns for shard in sorted((tmp_path / "cache").glob("*.bin"))] == written
    assert (tmp_path / "1" / MANIFEST).read_text() == (tmp_path / "2" / MANIFEST).read_text()
    other = BPETokenizer.train_from_iterator(LINES, vocab_size=300, progress=False)
    TextDataModule.prepare(tmp_path / "3", renamed, other)
    stat = (tmp_path / "c.txt").stat()
    (tmp_path / "c.txt").write_text((tmp_path / "c.txt").read_text().replace("play", "gala"))
    os.utime(tmp_path / "c.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    TextDataModule.prepare(tmp_path / "4", renamed, tiny_tokenizer)
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 6
    ids = torch.cat([TextDataModule(tmp_path / "4", 8).train_dataset().batch(np.arange(40)).token_ids])
    assert "gala" in tiny_tokenizer.decode(ids.tolist())
    assert "play" not in tiny_tokenizer.decode(ids.tolist())


@pytest.mark.parametrize("pieces", [1, 100])
def test_shards_hold_what_bare_encoding_gives(
    tmp_path: Path, corpus: DataConfig, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    monkeypatch.setattr("llm.data.tokenize._BATCH_BYTES", 1 << 20 if pieces == 1 else 300)
    monkeypatch.setattr("llm.data.readers.read.BLOCK_BYTES", 1 << 20 if pieces == 1 else 120)
    monkeypatch.setattr("llm.data.readers.pieces.PIECE_BYTES", 1 << 20 if pieces == 1 else 50)
    config = msgspec.structs.replace(corpus, validation_fraction=0.0)
    TextDataModule.prepare(tmp_path / "data", config, tiny_tokenizer)
    [shard] = (tmp_path / "data").glob("*.bin")
    expected, ends = [], []
    for at in range(0, 150, 10):
        expected += [*tiny_tokenizer.encode("".join(LINES[at : at + 10])), tiny_tokenizer.eos_ids[0]]
        ends.append(len(expected))
    assert open_shard(shard).tolist() == expected
    assert open_ends(shard).tolist() == ends


@given(st.lists(st.text(st.sampled_from("Line 12 of\n a play|é🎭"), max_size=60), max_size=12), st.integers(1, 40))
def test_blocks_have_the_ids_of_their_documents(tiny_tokenizer, texts: list[str], piece_bytes: int) -> None:
    options = {"separator": "|", "at_line_ends": True, "field": "text", "max_piece_bytes": 1 << 20}
    cutter = DocumentCutter(piece_bytes=piece_bytes, **options)
    blocks = [cutter.feed_text(text, ends=idx % 3 == 0) for idx, text in enumerate(texts)]
    fast, slow = tiny_tokenizer.encode_blocks(blocks), BaseTokenizer.encode_blocks(tiny_tokenizer, blocks)
    assert (fast.ids.dtype, slow.ids.dtype) == (np.uint16, np.uint16)
    assert (fast.ids.tolist(), fast.ends.tolist()) == (slow.ids.tolist(), slow.ends.tolist())
    whole = [*blocks, cutter.feed_text("", ends=True)]
    found = [""]
    for text, ends in (piece for block in whole for piece in block.pieces()):
        found[-1] += text
        found += [""] if ends else []
    expected = [token for text in found[:-1] for token in [*tiny_tokenizer.encode(text), tiny_tokenizer.eos_ids[0]]]
    assert tiny_tokenizer.encode_blocks(whole).ids.tolist() == expected


def test_a_damaged_shard_is_tokenized_anew_or_refused(tmp_path: Path, corpus: DataConfig, tiny_tokenizer) -> None:
    TextDataModule.prepare(tmp_path / "data", corpus, tiny_tokenizer)
    shard = max((tmp_path / "data").glob("*.bin"), key=lambda file: file.stat().st_size)
    whole = shard.read_bytes()
    assert mend_corpus(corpus, tiny_tokenizer, tmp_path / "data") == []
    for damage, words in (
        (whole[:-3], "must have"),
        (whole[:9] + b"\1\1" + whole[11:], "other bytes than were written"),
    ):
        shard.write_bytes(damage)
        [notice] = mend_corpus(corpus, tiny_tokenizer, tmp_path / "data")
        assert words in notice
        assert shard.read_bytes() == whole
    shard.unlink()
    (tmp_path / "a.txt").write_text("other text " * 99)
    with pytest.raises(DataError, match="and the text is not what it was when the run began"):
        mend_corpus(corpus, tiny_tokenizer, tmp_path / "data")
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"no token shard at .*, and the text can't be tokenized anew: .*no such file"):
        mend_corpus(corpus, tiny_tokenizer, tmp_path / "data")


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_shards_take_the_smaller_type_that_holds_every_id(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    ids, ends = np.array([vocab_size - 1], dtype=np.uint32), np.array([1])
    write_shard(tmp_path / "a.bin", [BlockIds(ids, ends)], vocab_size)
    assert (open_shard(tmp_path / "a.bin").dtype, damage_of(tmp_path / "a.bin")) == (dtype, None)
    assert open_shard(tmp_path / "a.bin").tolist() == [vocab_size - 1]


def test_bad_corpora_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    for paths, message in (
        ((str(tmp_path / "none.txt"),), "none.txt: no such file"),
        ((str(tmp_path / "empty.txt"),), "the corpus is empty: 1 file"),
        ((), "no training text was named"),
    ):
        with pytest.raises(DataError, match=message):
            scan_corpus(DataConfig(paths=paths), tmp_path)


def test_what_windows_adds_to_text_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo<|endoftext|> <|endoftext|>three")
    words = remarks(scan_corpus(DataConfig(paths=(str(tmp_path / "a.txt"),)), tmp_path))
    assert "has Windows line ends (CRLF), which are learnt as they are" in words[0]
    assert words[1].endswith("a.txt has a byte order mark, which is left out")
    assert words[2:] == ["documents without text, which are left out: 1"]


def test_a_text_shorter_than_a_sample_is_refused(tmp_path: Path, tiny_tokenizer) -> None:
    (tmp_path / "a.txt").write_text("To be")
    config = DataConfig(paths=(str(tmp_path / "a.txt"),), validation_fraction=0.0)
    TextDataModule.prepare(tmp_path / "data", config, tiny_tokenizer)
    data = TextDataModule(tmp_path / "data", context_length=64)
    assert data.validation_dataset() is None
    with pytest.raises(DataError, match=r"one sample needs 65\nhint: add text or lower `data.context_length`"):
        data.train_dataset()


def test_the_shards_of_older_runs_open(tmp_path: Path) -> None:
    for name, count in (("train", 41), ("validation", 10)):
        (tmp_path / f"{name}.bin").write_bytes(np.arange(count, dtype=np.uint16).tobytes())
        (tmp_path / f"{name}.json").write_text(json.dumps({"dtype": "uint16", "num_tokens": count, "vocab_size": 99}))
    data = TextDataModule(tmp_path, context_length=8)
    assert data.train_dataset().batch(np.array([4])).labels.tolist() == list(range(33, 41))
    assert len(data.validation_dataset()) == 2


def test_validation_text_of_its_own_within_a_limit(tmp_path: Path, corpus: DataConfig, tiny_tokenizer) -> None:
    config = msgspec.structs.replace(
        corpus, field="body", validation_paths=(str(tmp_path / "b.jsonl"),), validation_tokens=64
    )
    TextDataModule.prepare(tmp_path / "data", config, tiny_tokenizer)
    data = TextDataModule(tmp_path / "data", 16, config)
    facts = {one["name"]: one for one in data.facts()}
    assert (facts["text"]["documents"], facts["validation"]["validation_documents"]) == (15, 10)
    whole = TextDataModule(tmp_path / "data", 16, msgspec.structs.replace(config, validation_tokens=None))
    every, some = whole.validation_dataset(), data.validation_dataset()
    assert (len(some), len(every) > 12) == (4, True)
    starts = every.batch(np.arange(4) * len(every) // 4)
    assert some.batch(np.arange(4)).token_ids.equal(starts.token_ids)


def mixture(tmp_path: Path, *weights: float) -> DataConfig:
    first = SourceConfig(paths=(str(tmp_path / "a.txt"),), weight=weights[0])
    second = SourceConfig(paths=(str(tmp_path / "b.jsonl"),), weight=weights[1], field="body", name="speeches")
    return DataConfig(sources=(first, second))


def test_a_mixture_knows_where_each_sequence_comes_from(tmp_path: Path, corpus: DataConfig, tiny_tokenizer) -> None:
    config = mixture(tmp_path, 3, 1)
    TextDataModule.prepare(tmp_path / "data", config, tiny_tokenizer)
    dataset = TextDataModule(tmp_path / "data", 16, config).train_dataset()
    assert (dataset.source_names, dataset.weights) == (("a", "speeches"), (3.0, 1.0))
    border = dataset.sizes[0]
    batch = dataset.batch(np.array([border, 0, border - 1]))
    assert batch.sources == (1, 0, 0)
    assert tiny_tokenizer.decode(batch.token_ids[:16].tolist()).startswith("Line 150")
    assert tiny_tokenizer.decode(batch.token_ids[16:32].tolist()).startswith("Line 0")


def test_sources_are_named_after_their_paths_and_patterns_after_their_folders() -> None:
    given = ["plays/", "web/*.jsonl.gz", "books/**/[0-9]?.txt", "data/part-*.txt", "/*/a.b.txt", "*.txt"]
    config = DataConfig(sources=tuple(SourceConfig(paths=(path,)) for path in given))
    assert [source.name for source in config.all_sources] == ["plays", "web", "books", "part-*", "a", "*.txt"]


def test_a_field_that_a_source_lacks_is_named_where_it_is_set(tmp_path: Path) -> None:
    (tmp_path / "web.jsonl").write_text('{"content": "To be"}\n')
    for source, hint in (
        (SourceConfig(paths=(str(tmp_path / "web.jsonl"),)), "such as `data.field=content`"),
        (
            SourceConfig(paths=(str(tmp_path / "web.jsonl"),), field="text"),
            'such as `field = "content"` of the source `web` in `data.sources`',
        ),
    ):
        with pytest.raises(DataError, match="no field `text`; the fields there are `content`") as caught:
            scan_corpus(DataConfig(sources=(source,)), tmp_path / "cache")
        assert str(caught.value).endswith(f"\nhint: name the one to read, {hint}")


def test_contradictory_sources_are_refused(tmp_path: Path) -> None:
    for overrides, words in (
        (["data.sources=[{paths=['a']}]", "data.paths=['b']"], "text comes from `data.paths` or `data.sources`"),
        (
            ["data.sources=[{paths=['x/a.txt']}, {paths=['y/a.txt']}]"],
            r"names, got a, a\nhint: give each a `name` of its own",
        ),
        (
            ["data.sources=[{paths=['a'], wieght=2}]"],
            r"unknown setting `data.sources\[0\].wieght`; did you mean `weight`",
        ),
        (["data.packing=true", "data.sampling=crops"], "`data.sampling` must be windows with `data.packing`"),
        (["data.sources=[{paths=['a'], weight=0}]"], "one of the weights in `data.sources` must be above 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_run_config(None, overrides)


@given(st.lists(st.integers(1, 24), max_size=200))
def test_bins_hold_every_piece_once_and_waste_little(lengths: list[int]) -> None:
    bins = pack(np.array(lengths, np.int64), 24)
    assert sorted(piece for content in bins for piece in content) == list(range(len(lengths)))
    filled = [sum(lengths[piece] for piece in content) for content in bins]
    assert all(size <= 24 for size in filled)
    assert len(bins) <= 11 / 9 * -(-sum(lengths) // 24) + max(1, sum(length > 12 for length in lengths))


def test_packed_documents_are_trained_as_if_alone(tmp_path: Path, tiny_tokenizer) -> None:
    documents = ["".join(LINES[at : at + size]) for at, size in enumerate((1, 2, 9, 1, 3, 1, 2, 4))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    config = DataConfig(paths=(str(tmp_path / "a.jsonl"),), packing=True, validation_fraction=0.0)
    TextDataModule.prepare(tmp_path / "data", config, tiny_tokenizer)
    data = TextDataModule(tmp_path / "data", 64, config)
    dataset = data.train_dataset()
    batch = dataset.batch(np.arange(len(dataset)))
    ids = [[*tiny_tokenizer.encode(text), tiny_tokenizer.eos_ids[0]] for text in documents]
    [facts] = data.facts()
    assert (facts["documents"], facts["cut"], facts["dropped"]) == (8, sum(len(one) > 65 for one in ids), 0)
    assert facts["filled"] > 0.75
    assert data.notices() == [
        f"text: {facts['cut']} of 8 documents are longer than a sample (64 tokens) and are cut into windows"
    ]
    assert len(batch.labels) == sum(map(len, ids)) - len(ids)  # every token but the first of each document
    assert sorted(batch.labels.tolist()) == sorted(token for one in ids for token in one[1:])
    torch.manual_seed(0)
    model = DecoderModel(
        ModelConfig(vocab_size=tiny_tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    ).eval()
    packed = token_losses(model, batch).split(batch.lengths)
    by_tokens = {
        tuple(part.tolist()): losses for part, losses in zip(batch.token_ids.split(batch.lengths), packed, strict=True)
    }
    for one in ids:
        for start in range(0, len(one) - 1, 64):
            window = torch.tensor(one[start : start + 65])
            alone = type(batch)(window[:-1], window[1:], (len(window) - 1,))
            torch.testing.assert_close(
                by_tokens[tuple(window[:-1].tolist())], token_losses(model, alone), atol=1e-5, rtol=0
            )


def test_read_options_are_those_of_the_source(tmp_path: Path, corpus: DataConfig) -> None:
    sources = scan_corpus(mixture(tmp_path, 1, 1), tmp_path)
    assert [source.options for source in sources] == [ReadOptions(), ReadOptions(field="body", source="speeches")]
