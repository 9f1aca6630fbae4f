"""A progress bar for many prompts at once."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import MofNCompleteColumn, TextColumn

from llm.inference.outputs import Delta
from llm.progress import progress_bar

# Fewer answers finish before anyone could read a bar.
_MANY = 16


@contextlib.contextmanager
def generation_progress(total: int, wanted: bool | None) -> Iterator[Callable[[Delta], None] | None]:
    """Shows finished answers, tokens per second and time left on stderr; yields a callback for deltas, or `None`.

    Args:
        total: Number of answers to come.
        wanted: Whether to show the bar; `None` shows one for more than 16 answers on a terminal.
    """
    console = Console(stderr=True)
    if not (console.is_terminal and total > _MANY if wanted is None else wanted):
        yield None
        return
    amounts = (MofNCompleteColumn(), TextColumn("{task.fields[speed]:,.0f} tokens/s"))
    began = time.perf_counter()
    num_tokens = 0
    with progress_bar(*amounts, wanted=True, console=console) as progress:
        task = progress.add_task("generating", total=total, speed=0.0)

        def take(delta: Delta) -> None:
            nonlocal num_tokens
            num_tokens += len(delta.token_ids)
            progress.update(
                task, advance=int(delta.finish_reason is not None), speed=num_tokens / (time.perf_counter() - began)
            )

        yield take
