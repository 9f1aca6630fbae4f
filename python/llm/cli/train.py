"""`llm train`."""

import sys
from typing import Annotated

import msgspec
import typer

from llm.errors import ConfigError
from llm.settings.fields import declared, default_of, flat_fields
from llm.settings.merge import hint_for
from llm.settings.run import RunConfig

# Unknown options reach `train`, which names the setting they stand for.
CONTEXT = {"ignore_unknown_options": True}
EXAMPLE = "Example:  llm train --data corpus.txt --out runs/base training.max_steps=500 model.hidden_size=256"


def train(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG.toml] [section.field=value]...", help="A settings file, then single settings."),
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="Text: a file, directory or glob; may be repeated.")] = None,
    out: Annotated[str | None, typer.Option(help="The run's directory.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="A tokenizer's directory; default: train one.")] = None,
    task: Annotated[str | None, typer.Option(help="lm or regression.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples per optimizer step, over all devices.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps, instead of epochs.")] = None,
    num_samples: Annotated[int | None, typer.Option(min=1, help="Use (or make up) this many samples.")] = None,
    resume: Annotated[bool, typer.Option("--resume", metavar="", help="Resume the run in --out.")] = False,
    list_settings: Annotated[
        bool, typer.Option("--list-settings", metavar="", help="Print every setting with its default, then exit.")
    ] = False,
) -> None:
    """Train a model from text, or resume a run. `torchrun --no-python llm train …` uses several processes."""
    if list_settings:
        print("\n".join(_all_settings()))
        return
    files, overrides = _sorted(settings or [])
    if resume and out is None and files:
        out = files.pop()
    file = _settings_file(files)
    if out is None:
        raise ConfigError("`--out` is missing\nhint: name the run's directory, such as `--out runs/base`")
    from llm.api import train as train_run
    from llm.training.distributed import Distributed

    if num_samples is not None:
        overrides.append(f"data.num_samples={num_samples}")
    try:
        checkpoint = train_run(
            file,
            data=data,
            tokenizer=tokenizer,
            overrides=overrides,
            task=task,
            epochs=epochs,
            batch_size=batch_size,
            max_steps=max_steps,
            out=None if resume else out,
            resume=out if resume else None,
        )
    except KeyboardInterrupt:
        print(f"stopped; resume with:  llm train --out {out} --resume", file=sys.stderr)
        raise
    if Distributed.is_main_process():  # under torchrun each process comes here
        print(f"{checkpoint}\nnext:  llm generate {out} 'Once upon'   ·   llm serve {out}")


def _sorted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The files and the settings among the arguments.

    Raises:
        ConfigError: An option that doesn't exist; the hint names the setting it stands for.
    """
    for argument in arguments:
        if argument.startswith("-"):
            name = argument.lstrip("-").partition("=")[0]
            hint = hint_for(name) or "\nhint: `llm train --list-settings` prints every setting"
            raise ConfigError(f"no such option `--{name}`; settings are given as `section.field=value`{hint}")
    return [one for one in arguments if "=" not in one], [one for one in arguments if "=" in one]


def _settings_file(files: list[str]) -> str | None:
    if len(files) > 1:
        raise ConfigError(f"at most one settings file can be given, got {', '.join(files)}")
    if files and not files[0].endswith(".toml"):
        raise ConfigError(
            f"a settings file must end in .toml, got {files[0]!r}\nhint: for text use `--data {files[0]}`"
        )
    return files[0] if files else None


def _all_settings() -> list[str]:
    lines = []
    for name, field in flat_fields(RunConfig):
        default = default_of(field)
        shown = "(required)" if default is msgspec.NODEFAULT else msgspec.json.encode(default).decode()
        lines.append(f"{name}={shown}  # {declared(field.type)[1].description}")
    return lines


command = train
