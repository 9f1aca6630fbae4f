"""Training: equal to the slow twin, the same on any number of threads, clear about bad input."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
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


@pytest.mark.long
@pytest.mark.parametrize("pattern", PATTERNS)
@given(corpus=st.lists(texts(), min_size=1, max_size=6), num_merges=st.integers(0, 40))
def test_tokens_equal_the_slow_twin(pattern: str, corpus: list[str], num_merges: int) -> None:
    corpus = [*corpus, "aaaa abab"]
    tokenizer = BPETokenizer.train_from_iterator(corpus, vocab_size=257 + num_merges, pattern=pattern)
    assert merged_tokens(tokenizer) == reference.token_bytes(reference.train(corpus, num_merges, pattern))


@given(
    corpus=st.lists(texts(), min_size=1, max_size=6),
    min_frequency=st.integers(1, 4),
    max_token_length=st.none() | st.integers(1, 6),
    num_threads=st.integers(1, 3),
)
def test_limited_tokens_equal_the_slow_twin(
    corpus: list[str], min_frequency: int, max_token_length: int | None, num_threads: int
) -> None:
    corpus = [*corpus, "aaaa abab aaaaaaa"]
    tokenizer = BPETokenizer.train_from_iterator(
        corpus,
        vocab_size=297,
        min_frequency=min_frequency,
        max_token_length=max_token_length,
        num_threads=num_threads,
    )
    merges = reference.train(corpus, 40, "gpt4", min_frequency, max_token_length)
    assert merged_tokens(tokenizer) == reference.token_bytes(merges)


def test_limits_are_met_by_the_tokens_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TRAINING_TEXT)
    tokenizer = BPETokenizer.train(tmp_path, vocab_size=2000, min_frequency=3, max_token_length=4, num_threads=2)
    merges = reference.train([TRAINING_TEXT], 2000, "gpt4", 3, 4)
    assert merged_tokens(tokenizer) == reference.token_bytes(merges)
    assert max(map(len, reference.token_bytes(merges))) == 4
    assert 256 < tokenizer.vocab_size < 2000


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
    assert reports[0] == (0, 344)
    assert all(64 <= after - before <= 128 for (before, _), (after, _) in pairwise(reports[:-1]))
    assert reports[-1][0] == reports[-1][1]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(stop)


def test_progress_callback_may_end_counting(tmp_path: Path) -> None:
    text = TRAINING_TEXT * 400
    (tmp_path / "a.txt").write_text(text)
    trainer = _rust.BPETrainer(vocab_size=600, pattern="gpt4", special_tokens=[])
    reports: list[int] = []
    trainer.add_file(tmp_path / "a.txt", reports.append)
    assert reports == sorted(reports)
    assert reports[-1] == len(text.encode())

    def stop(num_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.add_file(tmp_path / "a.txt", stop)
    with pytest.raises(InvalidArgumentError, match=r"must have counted whole texts, got one whose last text failed"):
        trainer.train()


@pytest.mark.parametrize("pattern", ["gpt4", "[a-z]+|[^a-z]"])
def test_interrupt_ends_counting_and_leaves_nothing(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TRAINING_TEXT)
    os.mkfifo(tmp_path / "endless")
    code = (
        # A shell that runs tests in the background has them ignore the signal, and so their children.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import sys; from llm import _rust; trainer = _rust.BPETrainer(vocab_size=700, pattern=sys.argv[2], "
        "special_tokens=[]); trainer.add_file(sys.argv[1], lambda _: print('counting', flush=True))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "endless"), pattern]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        with (tmp_path / "endless").open("w") as pipe:
            pipe.write(TRAINING_TEXT * 20)
            pipe.flush()
            assert process.stdout.readline() == "counting\n"
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "endless"]


def test_progress_bar_shows_reading_and_merging(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(TRAINING_TEXT)
    BPETokenizer.train(tmp_path / "a.txt", vocab_size=300, progress=True)
    shown = capfd.readouterr().err
    assert "Reading text" in shown
    kibibytes = f"{len(TRAINING_TEXT.encode()) / 1024:.1f}"
    assert f"{kibibytes}/{kibibytes} KiB" in shown
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
        (_train(), b"", DataError, r"a corpus must contain text, got an empty one"),
        (_train(), b"ab\xe9cd", DataError, r"corpus\.txt: text must be UTF-8, got byte 0xe9 at offset 2\nhint"),
        (_train(vocab_size=256), b"ab", InvalidArgumentError, r"`vocab_size` must be at least 257 .*, got 256"),
        (_train(vocab_size=-1), b"ab", InvalidArgumentError, r"`vocab_size` must be positive, got -1"),
        (_train(min_frequency=0), b"ab", InvalidArgumentError, r"`min_frequency` must be positive, got 0"),
        (_train(max_token_length=-3), b"ab", InvalidArgumentError, r"`max_token_length` must be positive, got -3"),
        (_train(num_threads=0), b"ab", InvalidArgumentError, r"`num_threads` must be positive, got 0"),
        (_train(num_threads=1025), b"ab", InvalidArgumentError, r"`num_threads` must be from 1 to 1024, got 1025"),
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
        ([], DataError, r"a corpus must contain text"),
        (["", ""], DataError, r"a corpus must contain text"),
        ("text", InvalidArgumentError, r"must be an iterable of texts, got one `str`\nhint"),
        (["a", b"b"], InvalidArgumentError, r"must have `str` items, got bytes"),
        (["\ud800"], InvalidArgumentError, r"without lone surrogates"),
        (["<|endoftext|>"], InvalidArgumentError, r"there must be text to train on"),
    ],
)
def test_bad_texts_are_named(corpus: list[str], error: type[LLMError], message: str) -> None:
    with pytest.raises(error, match=message):
        BPETokenizer.train_from_iterator(corpus, vocab_size=300)
