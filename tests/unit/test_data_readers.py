"""Readers of corpora: every format gives the same documents, in pieces, and every fault its words."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm._rust import DocumentCutter, TextBlock
from llm.data.readers import ReadNotes, ReadOptions, corpus_files, num_bytes, pieces_of, read_pieces, sliced
from llm.errors import DataError
from tests.reference.documents import documents

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


def zipped(content: bytes) -> bytes:
    """A gzip file without the time, by which names of tests would differ between processes."""
    return gzip.compress(content, mtime=0)


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
        ("a.txt.gz", zipped("hi".encode("utf-16")), r"`zcat .*a\.txt\.gz \| iconv -f UTF-16 -t UTF-8 > text"),
        ("a.txt.gz", zipped(b"caf\xe9 noir"), r"at offset 3\nhint: .*`zcat .*\| iconv -f LATIN1"),
        ("a.txt", "hi".encode("utf-16"), r"got UTF-16 text\nhint: convert it: `iconv -f UTF-16"),
        ("a.txt", "Hello there".encode("utf-16-le"), "zero bytes, got one at offset 1\nhint: it looks like UTF-16"),
        ("a.txt", b"\x7fELF" + b"code\0" * 9, "looks like a binary file"),
        ("a.txt", zipped(b"hi"), r"got a gzip file\nhint: let its name end in \.txt\.gz"),
        ("a.txt", b"ab\xe2\x82", "got byte 0xe2 at offset 2"),
        ("a.txt.gz", b"no gzip", "the gzip file is cut short or damaged: Not a gzipped file"),
        ("a.txt.gz", zipped(b"hi" * 999)[:-9], "cut short or damaged"),
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
        ("a.jsonl", b'{"text": 5}', "line 1: the field `text` must be text, got 5\nhint: none of them is text"),
        ("a.jsonl", b'{"text": null, "body": "x"}', "must be text, got null\nhint: .* `data.field=body`"),
        ("a.jsonl", b'{"data": {"text": "x"}}', "no field `text`; the fields there are `data`\nhint: none of them"),
        ("a.jsonl", b'{"text": "caf\xe9"}', "line 1: each line must be a JSON object, got"),
        ("a.jsonl", rb'{"text": "\ud800"}', "line 1: "),
    ],
)
def test_bad_content_is_one_error_with_its_place(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        documents_of(tmp_path / name)


@pytest.mark.parametrize(
    ("kept", "words"), [(slice(-5), "it is cut short"), (slice(500), "it is cut short"), (slice(6, None), "rror")]
)
def test_a_damaged_zstandard_file_is_named(tmp_path: Path, kept: slice, words: str) -> None:
    zstandard = pytest.importorskip("zstandard")
    text = "".join(f"Line {number} of a play.\n" for number in range(9_000))
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(text.encode())
    (tmp_path / "a.txt.zst").write_bytes(whole + whole)
    assert documents_of(tmp_path / "a.txt.zst") == [text * 2]
    (tmp_path / "a.txt.zst").write_bytes(whole[kept])
    with pytest.raises(DataError, match=rf"a\.txt\.zst: the Zstandard file is damaged before byte .*{words}"):
        documents_of(tmp_path / "a.txt.zst")


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


def test_bad_rows_of_parquet_are_named(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    good = ["a"] * 1500
    for bad, words in ((None, "got null"), (b"caf\xe9", "in UTF-8, got byte 0xe9")):
        column = arrow.array([*good, bad], arrow.binary()).view("string") if bad else arrow.array([*good, bad])
        parquet.write_table(arrow.table({"text": column}), tmp_path / "a{0}.parquet")
        with pytest.raises(DataError, match=rf"a\{{0\}}\.parquet, row 1501: the column `text` must be text.* {words}"):
            documents_of(tmp_path / "a{0}.parquet")
    parquet.write_table(
        arrow.table({"text": arrow.array(["é", "", "b"], arrow.large_string())}), tmp_path / "a{0}.parquet"
    )
    assert documents_of(tmp_path / "a{0}.parquet") == ["é", "b"]


anything = st.text(st.sampled_from('aé🎭"\\/\b\f\n\r\t\x01\x7f\u2028{}[]:, '), max_size=12)
others = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | anything,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(anything, values, max_size=3),
    max_leaves=5,
)
# Also what json.dumps never writes: pairs of escapes, fields that come twice, and spaces.
rare = st.sampled_from(
    [
        rb'{"text":"\ud83c\udfad\/\u0000\u00E9"}',
        rb'{"te\u0078t": "a"}',
        b'{"text": "a", "text": "b"}',
        b'{"text": 1, "text": "b"}',
        b' { "n" : [ { "text" : 2 } ] ,\t"text" : "a\\\\" } ',
        '{"é": "text", "text": "é"}'.encode(),
        b" \t",
        b"",
    ]
)


@st.composite
def json_lines(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        return draw(rare)
    fields = [*draw(st.dictionaries(anything, others, max_size=3)).items(), ("text", draw(anything))]
    ordered = dict(draw(st.permutations(fields)))
    return json.dumps(ordered, ensure_ascii=draw(st.booleans()), indent=None).encode()


@given(st.lists(json_lines(), max_size=8), st.sampled_from([b"\n", b"\r\n"]), st.integers(1, 40))
def test_lines_give_the_documents_of_pythons_own_parser(lines: list[bytes], line_end: bytes, step: int) -> None:
    expected = [json.loads(line)["text"] for line in lines if line.strip()]
    data = line_end.join(lines)
    fed = DocumentCutter(separator=None, at_line_ends=True, field="text", piece_bytes=99, max_piece_bytes=99)
    parts = [data[at : at + step] for at in range(0, len(data), step)] + [b""]
    found = [
        fed.feed_lines(part, is_last=not part, other=lambda _, line: str(json.loads(line)["text"])) for part in parts
    ]
    assert joined(found) == [*(text for text in expected if text.strip()), ""]


@given(json_lines(), st.data())
def test_a_line_that_is_changed_is_read_as_python_does_or_refused(line: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(line)))
    added = data.draw(
        st.sampled_from([b'"', b"\\", b"\\u", b"\\ud83c", b"{", b"}", b",", b":", b"0", b"\x00", b"\xff", b"x"])
    )
    changed = line[:place] + added + line[place + data.draw(st.integers(0, 2)) :]
    refused: list[bytes] = []
    fed = DocumentCutter(separator=None, at_line_ends=True, field="text", piece_bytes=99, max_piece_bytes=99)
    found = joined([fed.feed_lines(changed, is_last=True, other=lambda _, line: refused.append(line) or "refused")])
    if not refused and changed.strip():
        # Bytes of fields that aren't read need not be UTF-8.
        text = json.loads(changed.decode(errors="replace"))["text"]
        assert found == ([text, ""] if text.strip() else [""])


def test_marks_and_line_ends_of_windows_are_noted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n<|endoftext|>\r\nthree<|endoftext|> \n")
    notes = ReadNotes()
    assert documents_of(tmp_path / "a.txt", notes=notes) == ["one\r\ntwo\r\n", "three"]
    assert (notes.boms, notes.crlf, notes.num_blank) == ([str(tmp_path / "a.txt")], [str(tmp_path / "a.txt")], 1)


texts = st.text(st.sampled_from("ab \n\r\x1c\u2028|<>é🎭"), max_size=40)


def cutter(piece_bytes: int = 1 << 20, max_piece_bytes: int = 1 << 20) -> DocumentCutter:
    return DocumentCutter(
        separator="<|>",
        at_line_ends=True,
        field="text",
        piece_bytes=piece_bytes,
        max_piece_bytes=max(piece_bytes, max_piece_bytes),
    )


def joined(blocks: Iterable[TextBlock]) -> list[str]:
    """The documents of blocks; the last entry is what no document ends."""
    found = [""]
    for piece in pieces_of(blocks):
        found[-1] += piece.text
        found += [""] if piece.ends else []
    return found


@given(st.lists(texts, min_size=1, max_size=8), st.integers(1, 9), st.integers(1, 30), st.integers(1, 7))
def test_any_cut_of_the_stream_gives_the_same_documents(
    blocks: list[str], piece_bytes: int, max_piece_bytes: int, step: int
) -> None:
    whole = "".join(blocks)
    expected = [*documents(whole, "<|>"), ""]
    fed = cutter(piece_bytes, max_piece_bytes)
    assert joined(fed.feed_text(text, ends=idx == len(blocks) - 1) for idx, text in enumerate(blocks)) == expected
    data = whole.encode()
    parts = [data[at : at + step] for at in range(0, len(data), step)] + [b""]
    fed = cutter(piece_bytes, max_piece_bytes)
    assert joined(fed.feed(part, ends=not part) for part in parts) == expected


@given(st.binary(max_size=12) | texts.map(str.encode), st.integers(1, 5))
def test_bytes_that_are_no_text_are_found_where_they_are(data: bytes, step: int) -> None:
    fed = cutter()
    try:
        data.decode()
    except UnicodeDecodeError as error:
        words = f"got byte {data[error.start]:#04x} at offset {error.start}$"
        with pytest.raises(DataError, match=words):
            [fed.feed(data[at : at + step], ends=at + step >= len(data)) for at in range(0, len(data), step)]
    else:
        found = [fed.feed(data[at : at + step], ends=False) for at in range(0, len(data), step)]
        assert "".join(joined([*found, fed.feed(b"", ends=True)])) == "".join(documents(data.decode(), "<|>"))


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists)


@given(
    st.lists(st.tuples(texts, st.dictionaries(st.text(max_size=4), json_values, max_size=3)), max_size=5),
    st.booleans(),
    st.integers(1, 20),
)
def test_lines_of_json_hold_what_json_says(rows: list[tuple[str, dict]], ascii_only: bool, step: int) -> None:
    lines = [json.dumps(other | {"text": text}, ensure_ascii=ascii_only) for text, other in rows]
    data = "".join(f"{line}\n \n" for line in lines).encode()
    fed, refused = cutter(), []

    def other(number: int, line: bytes) -> str:
        refused.append(number)
        return json.loads(line)["text"]

    blocks = [fed.feed_lines(data[at : at + step], is_last=False, other=other) for at in range(0, len(data), step)]
    found = joined([*blocks, fed.feed_lines(b"", is_last=True, other=other)])
    assert found == [*(document for text, _ in rows for document in documents(text, "<|>")), ""]
    assert refused == []


def test_a_line_that_the_fast_reader_refuses_goes_to_the_slow_one() -> None:
    seen = []

    def other(number: int, line: bytes) -> str:
        seen.append((number, line))
        return "found"

    block = cutter().feed_lines(b'{"text": "a", "text": "b"}\n\n[1]\n{"text": "x\ty"}\n{"text": 5}', True, other)
    assert [piece.text for piece in pieces_of([block])] == ["b", "found", "found", "found"]
    assert seen == [(3, b"[1]"), (4, b'{"text": "x\ty"}'), (5, b'{"text": 5}')]


@given(st.lists(texts, max_size=6), st.integers(0, 300))
def test_two_slices_are_the_whole(given_documents: list[str], border: int) -> None:
    fed = cutter(piece_bytes=8)
    blocks = [fed.feed_text(text, ends=True) for text in given_documents]
    whole = "".join(piece.text for piece in pieces_of(blocks))
    parts = [list(pieces_of(sliced(blocks, 0, border))), list(pieces_of(sliced(blocks, border, 10_000)))]
    texts_of = ["".join(piece.text for piece in part) for part in parts]
    assert "".join(texts_of) == whole
    assert num_bytes(texts_of[0]) <= border
    assert num_bytes(texts_of[0]) > min(border, num_bytes(whole)) - 4
    assert not parts[0] or parts[0][-1].ends or border > num_bytes(whole)
