"""`llm train`."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from llm.cli.arguments import Arguments, check_texts, settings_table, sorted_arguments, with_settings
from llm.cli.processes import start_processes
from llm.errors import ConfigError, FileError, TrainingError
from llm.settings.merge import Override
from llm.settings.names import full_name_or_error

# Options that aren't declared reach `train`, which takes them for the settings whose names they are.
CONTEXT = {"ignore_unknown_options": True}
# Settings that `--help` shows as options of their own, with further names; all others are options as well.
OPTIONS = {
    "training.size": (),
    "training.init_from": (),
    "training.task": (),
    "training.epochs": (),
    "training.max_steps": (),
    "training.batch_size": (),
    "optimizer.learning_rate": ("--lr",),
    "data.num_samples": (),
    "training.seed": (),
    "training.device": (),
}
EXAMPLE = "Example:  llm train --data corpus.txt --out runs/base --max-steps 500 model.hidden_size=256"
FromStep = Annotated[int | None, typer.Option(min=0, help="Resume from this checkpoint; newer ones are removed.")]
DecayFrom = Annotated[
    int | None, typer.Option(min=1, help="With --resume RUN --out NEW: let the rate decay from this checkpoint.")
]
Replay = Annotated[
    str | None,
    typer.Option(metavar="DUMP", help="Run a step again whose loss was not finite, and find the first bad value."),
]
NumProcesses = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Train in N processes of this machine, started by torchrun.")
]
MaxRestarts = Annotated[
    int, typer.Option(min=0, metavar="N", help="With --nproc: resume up to N times after a process failed.")
]


@with_settings(OPTIONS)
def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG.toml] [TEXT]... [section.field=value]...",
            help="A settings file, texts and single settings. A setting is an option too: `--dropout 0.1`.",
        ),
    ] = None,
    config: Annotated[str | None, typer.Option(help="The settings file.", metavar="CONFIG.toml")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Text: a file, directory or glob; may be repeated.")] = None,
    out: Annotated[str | None, typer.Option("--out", "--output", help="The run's directory.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="A tokenizer's directory; default: train one.")] = None,
    resume: Annotated[bool, typer.Option("--resume", metavar="", help="Resume the run in --out.")] = False,
    from_step: FromStep = None,
    decay_from: DecayFrom = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", metavar="", help="Replace a run in --out: what it wrote, nothing else.")
    ] = False,
    replay: Replay = None,
    nproc: NumProcesses = None,
    max_restarts: MaxRestarts = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="Print memory, steps, disk and time; write nothing.")
    ] = False,
    settings: Annotated[
        bool,
        typer.Option("--settings", "--list-settings", metavar="", help="List all settings, or those about a word."),
    ] = False,
    **options: Any,
) -> None:
    """Train a model from text, or resume a run; `torchrun … -m llm train …` uses several machines."""
    if nproc is not None:
        start_processes(nproc, sys.argv[1:], max_restarts)
    if max_restarts:
        raise ConfigError("`--max-restarts` needs `--nproc`\nhint: under torchrun, give `--max-restarts` to torchrun")
    if settings:
        print("\n".join(settings_table(arguments or [])))
        return
    if replay is not None:
        _replay(replay)
        return
    given = sorted_arguments([*(arguments or []), *([config] if config else [])])
    resume = resume or from_step is not None
    if decay_from is not None:
        beside = {"data": data, "tokenizer": tokenizer, "overwrite": overwrite, "from-step": from_step}
        _branch(given, options, decay_from, out, beside)
        return
    if resume and out is None and given.paths:
        out = given.paths.pop()
    texts = [*(data or []), *given.paths]
    check_texts(given.paths)
    if dry_run:
        _forecast(given, options, {"data.paths": texts, "tokenizer.path": tokenizer})
        return
    if out is None:
        raise ConfigError(f"`--out` is missing\nhint: name the run's directory, such as `--out {_example_run(texts)}`")
    more: dict[str, Any] = {"data": texts or None, "tokenizer": tokenizer, "overwrite": overwrite}
    more |= {"resume": out, "from_step": from_step} if resume else {"out": out}
    _train(given, options, out, more)


def _replay(directory: str) -> None:
    from llm.training.replay import replay

    for line in replay(directory):
        print(line)


def _forecast(given: Arguments, options: dict[str, Any], more: dict[str, Any]) -> None:
    from llm.training.dry_run import dry_run

    overrides = _overrides(given, options) + [(name, value) for name, value in more.items() if value]
    found = dry_run(given.file, overrides=overrides)
    print("\n".join([*found.lines(), "nothing is written; leave out `--dry-run` to train"]))


def _train(given: Arguments, options: dict[str, Any], out: str, more: dict[str, Any]) -> None:
    from llm.api import train as train_run

    _run(out, lambda: train_run(given.file, overrides=_overrides(given, options), **more))


def _branch(given: Arguments, options: dict[str, Any], step: int, out: str | None, beside: dict[str, Any]) -> None:
    """Trains the run `out` from a checkpoint of the run that the arguments name.

    Raises:
        ConfigError: No run is named, or an option of `beside` is given, which a branch would not follow.
    """
    if out is None or len(given.paths) != 1:
        raise ConfigError(
            "`--decay-from` branches a new run off another\nhint: `llm train --resume RUN --decay-from STEP --out NEW`"
        )
    if refused := [f"`--{name}`" for name, value in beside.items() if value]:
        raise ConfigError(
            f"`--decay-from` goes on with the text and tokenizer of the run, so it can't be combined with {refused[0]}"
        )
    from llm.training.launch import branch

    overrides = _overrides(given, options)
    _run(out, lambda: branch(given.paths[0], out, step, file=given.file, overrides=overrides))


def _overrides(given: Arguments, options: dict[str, Any]) -> list[Override]:
    return [*given.overrides, *((full_name_or_error(name), value) for name, value in options.items())]


def _run(directory: str, work: Callable[[], Any]) -> None:
    """Trains, then says what there is now; or what an end before the last step left, and how to go on."""
    from llm.training.distributed import Distributed

    try:
        checkpoint = work()
    except KeyboardInterrupt as stop:
        if Distributed.is_main_process():
            print(_stopped_words(directory), file=sys.stderr)
        if getattr(stop, "number", signal.SIGINT) == signal.SIGTERM:
            raise typer.Exit(0) from None
        raise
    except (FileError, TrainingError) as error:
        if not _has_started(directory):
            raise
        if Distributed.is_main_process():
            print(f"error: {error}\n{_stopped_words(directory)}", file=sys.stderr)
        elif isinstance(error, FileError):  # of this process alone, unlike a loss that is not finite
            print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if Distributed.is_main_process():  # under torchrun each process comes here
        print("\n".join([str(checkpoint), *_result_words(directory), _next_words(checkpoint, directory)]))


def _has_started(directory: str) -> bool:
    from llm.checkpoint.run import Run

    return Run(directory).exists


def _stopped_words(out: str) -> str:
    """Says what is saved, and the command that goes on from there."""
    from llm.checkpoint.run import Run, step_of

    run = Run(out)
    if not run.exists:
        return "stopped before the first step; nothing is saved: give the same command to start again"
    newest = run.newest()
    if newest is None:
        return f"stopped before the first checkpoint; start over with:  llm train --resume {out}"
    return f"stopped, saved at step {step_of(newest)}; resume with:  llm train --resume {out}"


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
    if not checkpoint.is_decoder or not checkpoint.has_tokenizer:
        return f"next:  llm info {out}"
    return f"next:  llm generate {out} 'Once upon'   ·   llm serve {out}"


def _example_run(texts: list[str]) -> str:
    name = Path(texts[0]).name.partition(".")[0] if texts else ""
    return f"runs/{name if name.isidentifier() else 'base'}"


command = train
