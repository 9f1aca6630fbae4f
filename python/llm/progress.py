"""The progress bar of every long task: on stderr, and by default only where that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


def progress_bar(*amounts: ProgressColumn, wanted: bool | None, console: Console | None = None) -> Progress:
    """Returns a bar with a description, `amounts`, the time taken and the time left.

    Args:
        *amounts: Columns that say how much is done.
        wanted: Whether to show the bar; `None` shows one on a terminal.
        console: Where to draw; stderr by default.
    """
    console = Console(stderr=True) if console is None else console
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *amounts,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (console.is_terminal if wanted is None else wanted),
    )


@contextmanager
def byte_progress(description: str, total: int, *, wanted: bool | None) -> Iterator[Callable[[int], None]]:
    """Shows a bar with bytes, speed and the time left; yields a function that takes the bytes done since its last call.

    A task of nothing shows no bar.
    """
    wanted = False if total == 0 else wanted
    with progress_bar(DownloadColumn(), TransferSpeedColumn(), wanted=wanted) as bar:
        task = bar.add_task(description, total=total)
        yield lambda num_bytes: bar.advance(task, num_bytes)
