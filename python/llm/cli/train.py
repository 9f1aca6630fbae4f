"""`llm train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from llm.cli.arguments import Arguments, check_texts, settings_table, sorted_arguments, with_settings
from llm.cli.processes import use_processes
from llm.cli.training import (
    Config,
    DryRun,
    FromStep,
    ListSettings,
    MaxRestarts,
    NumProcesses,
    Out,
    Overwrite,
    Resume,
    forecast,
    overrides_of,
    run_training,
)
from llm.errors import ConfigError

# Options that aren't declared reach `train`, which takes them for the settings whose names they are.
CONTEXT = {"ignore_unknown_options": True}
# Settings that `--help` shows as options of their own, with further names; all others are options as well.
OPTIONS = {
    "training.size": (),
    "training.init_from": (),
    "training.task": (),
    "distillation.teacher": (),
    "training.epochs": (),
    "training.max_steps": (),
    "training.batch_size": (),
    "optimizer.learning_rate": ("--lr",),
    "data.num_samples": (),
    "training.seed": (),
    "training.device": (),
}
EXAMPLE = "Example:  llm train --data corpus.txt --out runs/base --max-steps 500 model.hidden_size=256"
DecayFrom = Annotated[
    int | None, typer.Option(min=1, help="With --resume RUN --out NEW: let the rate decay from this checkpoint.")
]
Replay = Annotated[
    str | None,
    typer.Option(metavar="DUMP", help="Run a step again whose loss was not finite, and find the first bad value."),
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
    config: Config = None,
    data: Annotated[list[str] | None, typer.Option(help="Text: a file, directory or glob; may be repeated.")] = None,
    out: Out = None,
    tokenizer: Annotated[str | None, typer.Option(help="A tokenizer's directory; default: train one.")] = None,
    resume: Resume = False,
    from_step: FromStep = None,
    decay_from: DecayFrom = None,
    overwrite: Overwrite = False,
    replay: Replay = None,
    nproc: NumProcesses = None,
    max_restarts: MaxRestarts = 0,
    dry_run: DryRun = False,
    settings: ListSettings = False,
    **options: Any,
) -> None:
    """Train a model from text, or resume a run; `torchrun … -m llm train …` uses several machines."""
    use_processes("train", nproc, max_restarts)
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
        named = [(name, value) for name, value in (("data.paths", texts), ("tokenizer.path", tokenizer)) if value]
        forecast(given, [*overrides_of(given, options), *named])
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


def _train(given: Arguments, options: dict[str, Any], out: str, more: dict[str, Any]) -> None:
    from llm.api import train as train_run

    run_training("train", out, lambda: train_run(given.file, overrides=overrides_of(given, options), **more))


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

    overrides = overrides_of(given, options)
    run_training("train", out, lambda: branch(given.paths[0], out, step, file=given.file, overrides=overrides))


def _example_run(texts: list[str]) -> str:
    name = Path(texts[0]).name.partition(".")[0] if texts else ""
    return f"runs/{name if name.isidentifier() else 'base'}"


command = train
