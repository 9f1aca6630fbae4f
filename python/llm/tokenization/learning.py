"""Trains tokenizers on files or texts, with progress bars."""

from collections.abc import Callable, Iterable
from pathlib import Path

from rich.progress import DownloadColumn, MofNCompleteColumn, Progress, TaskID

from llm import _rust
from llm.errors import DataError
from llm.progress import progress_bar
from llm.tokenization.corpus import batched_texts


def train_on_files(trainer: _rust.BPETrainer, paths: Iterable[Path], *, progress: bool | None) -> _rust.Tokenizer:
    """Returns a tokenizer trained on the text of `paths`, which is read in parts.

    If `progress` is None, a progress bar is shown on a terminal.

    Raises:
        DataError: A file can't be read or is not UTF-8, or there is no text.
        TokenizerError: A custom pattern backtracks too much.
    """
    sizes = {path: _num_bytes(path) for path in paths}
    with progress_bar(DownloadColumn(binary_units=True), wanted=progress) as bar:
        task = bar.add_task("Reading text", total=sum(sizes.values()))
        done = 0
        for path, num_bytes in sizes.items():
            trainer.add_file(path, _advance(bar, task, done))
            done += num_bytes
            bar.update(task, completed=done)
    if done == 0:
        raise _no_text()
    return _merge(trainer, progress)


def train_on_texts(trainer: _rust.BPETrainer, texts: Iterable[str], *, progress: bool | None) -> _rust.Tokenizer:
    """Returns a tokenizer trained on `texts`; if `progress` is None, a progress bar is shown on a terminal.

    Raises:
        DataError: There is no text.
        InvalidArgumentError: An item is not text.
        TokenizerError: A custom pattern backtracks too much.
    """
    num_characters = 0
    for batch in batched_texts(texts):
        trainer.add(batch)
        num_characters += sum(map(len, batch))
    if num_characters == 0:
        raise _no_text()
    return _merge(trainer, progress)


def _merge(trainer: _rust.BPETrainer, progress: bool | None) -> _rust.Tokenizer:
    with progress_bar(MofNCompleteColumn(), wanted=progress) as bar:
        task = bar.add_task("Learning merges", total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return trainer.train(report)


def _advance(bar: Progress, task: TaskID, done: int) -> Callable[[int], None]:
    """Returns a callback that shows the bytes read of one file, after `done` bytes of earlier files."""
    return lambda num_bytes: bar.update(task, completed=done + num_bytes)


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error


def _no_text() -> DataError:
    return DataError("a corpus must contain text, got an empty one")
