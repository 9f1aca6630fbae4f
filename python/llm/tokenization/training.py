"""How a trainer is fed and what is shown meanwhile."""

from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from llm import _rust
from llm.errors import DataError
from llm.tokenization.corpus import batched_texts


def train_on_files(trainer: _rust.BPETrainer, paths: Iterable[Path], *, progress: bool | None) -> _rust.Tokenizer:
    """Learns from the text of `paths`, read part by part; `progress` None shows a bar on a terminal.

    Raises:
        DataError: A file can't be read or is not UTF-8, or there is no text.
        TokenizerError: A custom pattern backtracks too much.
    """
    sizes = {path: _num_bytes(path) for path in paths}
    with _progress_bar(progress, DownloadColumn(binary_units=True)) as bar:
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
    """Learns from `texts`; `progress` None shows a bar on a terminal.

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
    with _progress_bar(progress, MofNCompleteColumn()) as bar:
        task = bar.add_task("Learning merges", total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return trainer.train(report)


def _advance(bar: Progress, task: TaskID, done: int) -> Callable[[int], None]:
    """Shows the bytes read of one file after `done` of those before."""
    return lambda num_bytes: bar.update(task, completed=done + num_bytes)


def _progress_bar(progress: bool | None, amount: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        amount,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (console.is_terminal if progress is None else progress),
    )


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error


def _no_text() -> DataError:
    return DataError("a corpus must have text to learn from, got an empty one")
