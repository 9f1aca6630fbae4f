"""Training: equal to the slow twin, the same on any number of threads, clear about bad input."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm import _rust
from llm.errors import DataError, InvalidArgumentError, LLMError, TokenizerError
from llm.tokenization import BPETokenizer
from tests.reference import bpe as reference
from tests.unit.tokenization_samples import PATTERNS, TRAINING_TEXT, texts


def merged_tokens(tokenizer: BPETokenizer) -> list[bytes | None]:
    return tokenizer.token_bytes()[: tokenizer.vocab_size - len(tokenizer.special_tokens)]


@pytest.mark.parametrize("pattern", PATTERNS)
@given(corpus=st.lists(texts(), min_size=1, max_size=6), num_merges=st.integers(0, 40))
def test_tokens_equal_the_slow_twin(pattern: str, corpus: list[str], num_merges: int) -> None:
    corpus = [*corpus, "aaaa abab"]
    tokenizer = BPETokenizer.train_from_iterator(corpus, vocab_size=257 + num_merges, pattern=pattern)
    assert merged_tokens(tokenizer) == reference.token_bytes(reference.train(corpus, num_merges, pattern))


def test_tokens_of_real_text_equal_the_slow_twin() -> None:
    tokenizer = BPETokenizer.train_from_iterator([TRAINING_TEXT], vocab_size=457)
    assert merged_tokens(tokenizer) == reference.token_bytes(reference.train([TRAINING_TEXT], 200, "gpt4"))


@pytest.mark.parametrize("num_threads", [1, 3, 8])
def test_training_does_not_depend_on_threads(num_threads: int, tmp_path: Path) -> None:
    # More text than one thread counts at a time.
    for index in range(4):
        lines = (
            f"word{(n * 7919 + index) % 613} text{n % 97} {TRAINING_TEXT[n % 500 : n % 500 + 9]}" for n in range(9000)
        )
        (tmp_path / f"{index}.txt").write_text("\n".join(lines))
    code = (
        "import sys; from llm.tokenization import BPETokenizer; "
        "BPETokenizer.train(sys.argv[1], vocab_size=700).save(sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "out")]
    subprocess.run(command, env=os.environ | {"RAYON_NUM_THREADS": str(num_threads)}, check=True)
    expected = BPETokenizer.train_from_iterator(
        [(tmp_path / f"{index}.txt").read_bytes().decode() for index in reversed(range(4))], vocab_size=700
    )
    assert (tmp_path / "out" / "tokenizer.json").read_text() == expected.to_json()


def test_files_directories_and_patterns_mean_the_same_text(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text(TRAINING_TEXT)
    (tmp_path / "deep" / "b.txt").write_text("speak further " * 50)
    (tmp_path / "notes.md").write_text("not part of it " * 50)
    files = [tmp_path / "a.txt", str(tmp_path / "deep" / "b.txt")]
    expected = BPETokenizer.train(files, vocab_size=400).to_json()
    for same in (tmp_path, [f"{tmp_path}/**/*.txt"], [tmp_path, *files], [f"{tmp_path}/a*", tmp_path / "deep"]):
        assert BPETokenizer.train(same, vocab_size=400).to_json() == expected


def test_vocab_size_counts_bytes_merges_and_special_tokens() -> None:
    tokenizer = BPETokenizer.train_from_iterator([TRAINING_TEXT], vocab_size=300, special_tokens=["<|a|>", "<|b|>"])
    assert tokenizer.vocab_size == 300
    assert tokenizer.special_tokens == {"<|a|>": 298, "<|b|>": 299}
    smallest = BPETokenizer.train_from_iterator(["text"], vocab_size=257)
    assert smallest.encode("text") == list(b"text")
    # Nothing is left to merge after "ab": no id is wasted on tokens that can't be.
    assert BPETokenizer.train_from_iterator(["ab"], vocab_size=1000).vocab_size == 258


def test_special_tokens_are_never_merged() -> None:
    tokenizer = BPETokenizer.train_from_iterator(["<|endoftext|>xy<|endoftext|>xy"], vocab_size=300)
    assert merged_tokens(tokenizer)[256:] == [b"xy"]


def test_progress_callback_may_end_training() -> None:
    trainer = _rust.BPETrainer(vocab_size=600, pattern="gpt4", special_tokens=[])
    trainer.add([TRAINING_TEXT])
    reports: list[tuple[int, int]] = []
    trainer.train(lambda done, total: reports.append((done, total)))
    assert reports[:2] == [(0, 344), (64, 344)]
    assert reports[-1][0] == reports[-1][1]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(stop)


def test_progress_bar_shows_reading_and_merging(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(TRAINING_TEXT)
    BPETokenizer.train(tmp_path / "a.txt", vocab_size=300, progress=True)
    shown = capfd.readouterr().err
    assert "Reading files" in shown
    assert "43/43" in shown
    BPETokenizer.train(tmp_path / "a.txt", vocab_size=300, progress=False)
    assert capfd.readouterr() == ("", "")


def _train(**changes: object) -> Callable[[Path], object]:
    settings = {"vocab_size": 300} | changes
    return lambda path: BPETokenizer.train(path, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("train", "content", "error", "message"),
    [
        (_train(), None, DataError, r"corpus\.txt: no such file or directory\nhint"),
        (_train(), b"", DataError, r"a corpus must have text to learn from, got an empty one"),
        (_train(), b"ab\xe9cd", DataError, r"corpus\.txt: text must be UTF-8, got byte 0xe9 at offset 2\nhint"),
        (_train(vocab_size=256), b"ab", InvalidArgumentError, r"`vocab_size` must be at least 257 .*, got 256"),
        (_train(vocab_size=-1), b"ab", InvalidArgumentError, r"`vocab_size` must be positive, got -1"),
        (_train(pattern="gpt5"), b"ab", InvalidArgumentError, r"`pattern` must be one of \"gpt2\", \"gpt4\", "),
        (_train(special_tokens=["", "b"]), b"ab", TokenizerError, r"special token \"\" .* must not be empty"),
        (_train(special_tokens=["<a>", "<a>"]), b"ab", TokenizerError, r"special token \"<a>\" .* is there twice"),
        (
            lambda path: BPETokenizer.train(f"{path}*.csv", vocab_size=300),
            b"",
            DataError,
            r"pattern that matches no file",
        ),
        (
            lambda path: BPETokenizer.train(path.parent, vocab_size=300),
            None,
            DataError,
            r"directory without \.txt files",
        ),
        (lambda path: BPETokenizer.train([], vocab_size=300), None, DataError, r"must have at least one file"),
    ],
)
def test_bad_training_input_is_named(
    train: Callable[[Path], object], content: bytes | None, error: type[LLMError], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "corpus.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        train(path)


@pytest.mark.parametrize(
    ("corpus", "error", "message"),
    [
        ([], DataError, r"a corpus must have text to learn from"),
        (["", ""], DataError, r"a corpus must have text to learn from"),
        ("text", InvalidArgumentError, r"must be an iterable of texts, got one `str`\nhint"),
        (["a", b"b"], InvalidArgumentError, r"must have `str` items, got bytes"),
        (["\ud800"], InvalidArgumentError, r"without lone surrogates"),
        (["<|endoftext|>"], InvalidArgumentError, r"there must be text to train on"),
    ],
)
def test_bad_texts_are_named(corpus: list[str], error: type[LLMError], message: str) -> None:
    with pytest.raises(error, match=message):
        BPETokenizer.train_from_iterator(corpus, vocab_size=300)
