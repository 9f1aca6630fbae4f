"""`llm chat`."""

import contextlib
import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from llm.cli.form import FORM_FLAGS, FormOptions, form_of
from llm.cli.options import Dtype, Path, engine_of, with_engine_options, with_options
from llm.settings.sampling import UNPRINTED, SamplingParams, with_form

EXAMPLE = 'Example:  llm chat runs/demo --message "What news from Verona?" --seed 1'


@with_options(
    SamplingParams,
    skip=UNPRINTED,
    flags={"include_stop_str_in_output": "--include-stop"},
    fallback=True,
)
@with_options(FormOptions, flags=FORM_FLAGS)
@with_engine_options
def chat(
    path: Path,
    message: Annotated[str | None, typer.Option(help="Send this, print the answer and exit.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    dtype: Dtype = "auto",
    **sampling: Any,
) -> None:
    """Chat with a model. An empty line or Ctrl-D leaves; Ctrl-C stops an answer."""
    from llm.api import LLM
    from llm.checkpoint import given_name
    from llm.errors import ContextLengthError

    form = form_of(sampling)
    model = LLM(path, dtype, config=engine_of(sampling))
    params = with_form(model.sampling_params(**sampling), form)
    messages = [{"role": "system", "content": system}] if system else []
    if message is None and sys.stdin.isatty():
        _greet(given_name(path), model.engine.max_model_len)
    while (text := message if message is not None else _ask()) is not None:
        messages.append({"role": "user", "content": text})
        answer = ""
        try:
            with contextlib.nullcontext() if message is not None else _interruptible() as stop:
                for delta in model.stream_chat(messages, params):
                    answer += delta.text
                    print(delta.text, end="", flush=True)
                    if stop is not None and stop.is_set():
                        break
        except ContextLengthError:
            if len(messages) == 1 or message is not None:
                raise
            print("(the conversation no longer fits the context; starting a new one)")
            messages = messages[:1] if system else []
            continue
        print()
        if message is not None:
            return
        messages.append({"role": "assistant", "content": answer})


def _greet(name: str, num_tokens: int) -> None:
    with contextlib.suppress(ImportError):  # Windows has no readline
        importlib.import_module("readline")  # from now on, `input` has a history and takes arrow keys
    print(f"{name}, context of {num_tokens:,} tokens. Ctrl-C stops an answer; an empty line or Ctrl-D leaves.")


def _ask() -> str | None:
    try:
        return input("> ").strip() or None
    except EOFError:
        return None


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into an event, so that it never cuts a step of the engine short; a second one raises."""
    stop = threading.Event()

    def on_signal(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    earlier = signal.signal(signal.SIGINT, on_signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, earlier)


command = chat
