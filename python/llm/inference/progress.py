"""A bar for many prompts at once."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llm.errors import LLMError
from llm.inference.outputs import Delta

# Fewer answers are there before a bar would be read.
_MANY = 16


@contextlib.contextmanager
def generation_progress(total: int, wanted: bool | None) -> Iterator[Callable[[Delta | LLMError], None] | None]:
    """Shows answers done, tokens a second and time left on stderr; yields what takes each delta, or nothing.

    Args:
        total: Answers to come.
        wanted: Whether to show the bar; `None`: for many answers on a terminal.
    """
    console = Console(stderr=True)
    if not (console.is_terminal and total > _MANY if wanted is None else wanted):
        yield None
        return
    columns = (
        TextColumn("generating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    began = time.perf_counter()
    num_tokens = 0
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("generating", total=total, speed=0.0)

        def take(event: Delta | LLMError) -> None:
            nonlocal num_tokens
            is_over = isinstance(event, LLMError) or event.finish_reason is not None
            num_tokens += 0 if isinstance(event, LLMError) else len(event.token_ids)
            progress.update(task, advance=int(is_over), speed=num_tokens / (time.perf_counter() - began))

        yield take
