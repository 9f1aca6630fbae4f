"""Readers of corpora: every format gives the same documents, in pieces, and every fault its words."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.data.readers import Piece, ReadNotes, ReadOptions, corpus_files, num_bytes, pieces, read_pieces, sliced
from llm.data.readers.pieces import PieceCutter
from llm.errors import DataError

DOCUMENTS = ["To be,\nor not to be.\n", "Œuvre 🎭", "x" * 40]


def documents_of(file: Path, options: ReadOptions | None = None, notes: ReadNotes | None = None) -> list[str]:
    texts = [""]
    for piece in read_pieces(file, options or ReadOptions(), notes):
        texts[-1] += piece.text
        texts += [""] if piece.ends else []
    assert texts.pop() == ""
    return texts


def write(file: Path, documents: list[str]) -> Path:
    """Writes documents in the format that the name asks for."""
    lines = "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in documents)
    text = "<|endoftext|>\n".join(documents)
    if file.name.endswith(".parquet"):
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"id": [1] * len(documents), "text": documents}), file, row_group_size=2)
        return file
    content = (lines if ".jsonl" in file.name else text).encode()
    if file.suffix == ".gz":
        content = gzip.compress(content)
    if file.suffix == ".zst":
        content = pytest.importorskip("zstandard").compress(content)
    file.write_bytes(content)
    return file


NAMES = ["a.txt", "a.md", "a.jsonl", "a.parquet", "a.txt.gz", "a.jsonl.gz", "a.txt.zst", "a.jsonl.zst"]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    assert documents_of(write(tmp_path / name, DOCUMENTS)) == DOCUMENTS


def test_a_directory_gives_all_its_files_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.txt.gz", "c.MD", "picture.png", "deep/d.parquet", "e.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [file.name for file in corpus_files([tmp_path, tmp_path / "a.txt.gz"])]
    assert names == ["a.txt.gz", "b.jsonl", "c.MD", "d.parquet"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.json", r"\.json files can't be read.*\nhint: write one JSON object a line"),
        ("a.csv", r"\.csv files can't be read.*\nhint: convert it"),
        ("a.tar.gz", r"\.tar files can't be read.*\nhint: unpack it first: `tar"),
        ("none.txt", "no such file or directory"),
        ("*.txt", "pattern that matches no file"),
        (".", "directory without files of text"),
    ],
)
def test_paths_that_are_no_corpus_are_named(tmp_path: Path, name: str, words: str) -> None:
    if name.startswith("a"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=words):
        corpus_files([tmp_path / name])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"caf\xe9 au lait", r"text must be UTF-8, got byte 0xe9 at offset 3\nhint: convert it.*LATIN1"),
        ("a.txt", "hi".encode("utf-16"), r"got UTF-16 text\nhint: convert it: `iconv -f UTF-16"),
        ("a.txt", "Hello there".encode("utf-16-le"), "zero bytes, got one at offset 1\nhint: it looks like UTF-16"),
        ("a.txt", b"\x7fELF" + b"code\0" * 9, "looks like a binary file"),
        ("a.txt", gzip.compress(b"hi"), r"got a gzip file\nhint: let its name end in \.txt\.gz"),
        ("a.txt", b"ab\xe2\x82", "got byte 0xe2 at offset 2"),
        ("a.txt.gz", b"no gzip", "the gzip file is cut short or damaged: Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"hi" * 999)[:-9], "cut short or damaged"),
        (
            "a.jsonl",
            b'{"text": "a"}\n\n{"text": "b"\n',
            r'a\.jsonl, line 3: each line must be a JSON object, got \'{"te',
        ),
        ("a.jsonl", b'["a"]', "line 1: each line must be a JSON object"),
        (
            "a.jsonl",
            b'{"body": "a", "id": 1}',
            "line 1: no field `text`; the fields there are `body`, `id`\nhint: name",
        ),
        ("a.jsonl", b'{"text": 5}', "line 1: the field `text` must be text, got '5'"),
        ("a.jsonl", b'{"text": "caf\xe9"}', "line 1: each line must be a JSON object, got"),
        ("a.jsonl", rb'{"text": "\ud800"}', "line 1: "),
    ],
)
def test_bad_content_is_one_error_with_its_place(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        documents_of(tmp_path / name)


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"body": ["a"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no field `text`; the fields there are `body`, `n`"):
        documents_of(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="the column `n` must be text, got int64"):
        documents_of(tmp_path / "a.parquet", ReadOptions(field="n"))
    assert documents_of(tmp_path / "a.parquet", ReadOptions(field="body")) == ["a"]
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="is no Parquet file that can be read"):
        documents_of(tmp_path / "b.parquet")


def test_marks_and_line_ends_of_windows_are_noted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n<|endoftext|>\r\nthree<|endoftext|> \n")
    notes = ReadNotes()
    assert documents_of(tmp_path / "a.txt", notes=notes) == ["one\r\ntwo\r\n", "three"]
    assert (notes.boms, notes.crlf, notes.num_blank) == ([str(tmp_path / "a.txt")], [str(tmp_path / "a.txt")], 1)


texts = st.text(st.sampled_from("ab \n|<>é🎭"), max_size=40)


@given(st.lists(texts, min_size=1, max_size=8), st.integers(1, 9))
def test_any_cut_of_the_stream_gives_the_same_documents(blocks: list[str], size: int) -> None:
    def documents(stream: list[str], piece_chars: int) -> list[str]:
        before, pieces.PIECE_CHARS = pieces.PIECE_CHARS, piece_chars
        try:
            cutter, found = PieceCutter(ReadOptions(separator="<|>"), ReadNotes()), [""]
            for idx, text in enumerate(stream):
                for piece in cutter.feed(text, ends=idx == len(stream) - 1):
                    found[-1] += piece.text
                    found += [""] if piece.ends else []
        finally:
            pieces.PIECE_CHARS = before
        return found

    assert documents(blocks, size) == documents(["".join(blocks)], 1 << 20)


@given(st.lists(st.tuples(texts, st.booleans()), max_size=6), st.integers(0, 300))
def test_two_slices_are_the_whole(given_pieces: list[tuple[str, bool]], border: int) -> None:
    stream = [Piece(*piece) for piece in given_pieces]
    whole = "".join(piece.text for piece in stream)
    parts = [list(sliced(stream, 0, border)), list(sliced(stream, border, 10_000))]
    texts_of = ["".join(piece.text for piece in part) for part in parts]
    assert "".join(texts_of) == whole
    assert num_bytes(texts_of[0]) <= border
    assert num_bytes(texts_of[0]) > min(border, num_bytes(whole)) - 4
