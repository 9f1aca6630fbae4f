"""`llm train`."""

import sys
from typing import Annotated

import typer

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
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,
) -> None:
    """Train a model from text, or resume a run. `torchrun --no-python llm train …` uses several processes."""
    from llm.api import train as train_run
    from llm.errors import ConfigError
    from llm.training.distributed import Distributed

    if out is None:
        raise ConfigError("`--out` is missing\nhint: name the run's directory, such as `--out runs/base`")
    files = [setting for setting in settings or () if "=" not in setting]
    overrides = [setting for setting in settings or () if "=" in setting]
    if len(files) > 1:
        raise ConfigError(f"one settings file at most, got {', '.join(files)}")
    if num_samples is not None:
        overrides.append(f"data.num_samples={num_samples}")
    try:
        checkpoint = train_run(
            files[0] if files else None,
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


command = train
