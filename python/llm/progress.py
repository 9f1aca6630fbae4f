"""The progress bar of every long task: on stderr, and by default only where that is a terminal."""

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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
