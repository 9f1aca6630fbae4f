"""What the commands that train share: they start runs, and say what there is at the end."""

import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from llm.cli.arguments import Arguments
from llm.errors import FileError, TrainingError
from llm.settings.merge import Override
from llm.settings.paths import quoted

FromStep = Annotated[int | None, typer.Option(min=0, help="Resume from this checkpoint; newer ones are removed.")]
NumProcesses = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Train in N processes of this machine, started by torchrun.")
]
MaxRestarts = Annotated[
    int, typer.Option(min=0, metavar="N", help="With --nproc: resume up to N times after a process failed.")
]
Config = Annotated[str | None, typer.Option(help="The settings file.", metavar="CONFIG.toml")]
Out = Annotated[str | None, typer.Option("--out", "--output", help="The run's directory.")]
Resume = Annotated[bool, typer.Option("--resume", metavar="", help="Resume the run in --out.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", metavar="", help="Replace a run in --out: what it wrote, nothing else.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", metavar="", help="Print memory, steps, disk and time; write nothing.")
]
ListSettings = Annotated[
    bool, typer.Option("--settings", "--list-settings", metavar="", help="List all settings, or those about a word.")
]


def forecast(given: Arguments, overrides: list[Override]) -> None:
    """Prints what a run would take."""
    from llm.training.dry_run import dry_run

    found = dry_run(given.file, overrides=overrides)
    print("\n".join([*found.lines(), "nothing is written; leave out `--dry-run` to train"]))


def overrides_of(given: Arguments, options: dict[str, Any]) -> list[Override]:
    """Returns the settings of arguments and options."""
    return [*given.overrides, *options.items()]


def run_training(verb: str, directory: str, work: Callable[[], Any]) -> None:
    """Trains, then says what there is now; or what an end before the last step left, and how to go on by `verb`."""
    from llm.training.distributed import Distributed

    try:
        checkpoint = work()
    except KeyboardInterrupt as stop:
        if Distributed.is_main_process():
            print(_stopped_words(verb, directory), file=sys.stderr)
        if getattr(stop, "number", signal.SIGINT) == signal.SIGTERM:
            raise typer.Exit(0) from None
        raise
    except (FileError, TrainingError) as error:
        if not _has_started(directory):
            raise
        if Distributed.is_main_process():
            print(f"error: {error}\n{_stopped_words(verb, directory)}", file=sys.stderr)
        elif isinstance(error, FileError):  # of this process alone, unlike a loss that is not finite
            print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if Distributed.is_main_process():  # under torchrun each process comes here
        print("\n".join([str(checkpoint), *_result_words(directory), _next_words(checkpoint, directory)]))


def _has_started(directory: str) -> bool:
    from llm.checkpoint.run import Run

    return Run(directory).exists


def _stopped_words(verb: str, out: str) -> str:
    """Says what is saved, and the command that goes on from there."""
    from llm.checkpoint.run import Run, step_of

    run = Run(out)
    if not run.exists:
        return "stopped before the first step; nothing is saved: give the same command to start again"
    newest = run.newest()
    if newest is None:
        return f"stopped before the first checkpoint; start over with:  llm {verb} --resume {quoted(out)}"
    return f"stopped, saved at step {step_of(newest)}; resume with:  llm {verb} --resume {quoted(out)}"


def _result_words(out: str) -> list[str]:
    """Shows what the trained model writes, and where the run's page is."""
    from llm.checkpoint import Run

    run = Run(out)
    samples = run.samples.read()
    words = [f"report:  {run.report_file}"] if run.report_file.is_file() else []
    if samples:
        text = f"{samples[-1]['prompt']}{samples[-1]['text']}"
        words += ["", *(f"    {line}" for line in text.strip().splitlines()), ""]
    return words


def _next_words(checkpoint: Any, out: str) -> str:
    from llm.checkpoint import Run

    path = quoted(out)
    if checkpoint.is_reward_model:
        return f"next:  llm serve {path}, which answers POST /v1/score"
    if not checkpoint.is_decoder or not checkpoint.has_tokenizer:
        return f"next:  llm info {path}"
    is_plain = Run(out).read_config().data.kind in ("text", "synthetic")
    if checkpoint.tokenizer().chat_template is not None and not is_plain:
        return f"next:  llm chat {path}   ·   llm serve {path}"
    return f"next:  llm generate {path} 'Once upon'   ·   llm serve {path}"
