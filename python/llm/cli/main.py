"""The command `llm`. Each subcommand wraps one public function and has its own file."""

import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperCommand

import llm
from llm.cli import (
    bench,
    chat,
    data,
    demo,
    dpo,
    eval,
    export,
    generate,
    grpo,
    info,
    merge,
    quantize,
    reward,
    runs,
    serve,
    sft,
    tokenizer,
    train,
)
from llm.cli.options import NamingOptions
from llm.errors import LLMError, LLMWarning

app = typer.Typer(
    name="llm",
    epilog="Start with:  llm demo",
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(runs.app, name="runs")


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", metavar="", help="Print the version and exit.")] = False,
) -> None:
    """From a text corpus to a chat endpoint."""
    if version:
        print(f"llm-oxide {llm.__version__}")
        raise typer.Exit


for verb in (train, sft, dpo, grpo, reward, generate, chat, serve, eval, quantize, merge, export, info, demo):
    context = getattr(verb, "CONTEXT", None)
    # Messages of commands that train name settings, most of which have no option.
    kind = TyperCommand if verb in (train, sft, dpo, grpo, reward) else NamingOptions
    app.command(getattr(verb, "NAME", verb.command.__name__), cls=kind, epilog=verb.EXAMPLE, context_settings=context)(
        verb.command
    )


def main() -> None:
    """Entry point of `llm`."""
    run(app)


def main_train() -> None:
    """Entry point of `llm-train`."""
    run(app, "train")


def main_serve() -> None:
    """Entry point of `llm-serve`."""
    run(app, "serve")


def _say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Prints a warning of this package as a note, and any other as Python does."""
    is_own = issubclass(category, LLMWarning)
    words = f"note: {message}\n" if is_own else warnings.formatwarning(message, category, filename, lineno, line)
    print(words, end="", file=file or sys.stderr)


def run(command: Callable[..., Any], *verb: str) -> None:
    """Runs a command; an `LLMError` becomes one message and exit status 2."""
    warnings.showwarning = _say_warning
    try:
        command([*verb, *sys.argv[1:]], prog_name=" ".join(("llm", *verb)) if not verb else f"llm-{verb[0]}")
    except LLMError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        is_of_file = error.filename is not None and error.strerror is not None
        print(f"error: {error.filename}: {error.strerror}" if is_of_file else f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        from llm.models.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        print(f"error: out of memory: {error}\nhint: use a smaller model, context or batch", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
