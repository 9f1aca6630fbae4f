"""`llm grpo`."""

from typing import Annotated, Any

import typer

from llm.cli.arguments import settings_table, sorted_arguments, with_settings
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
from llm.cli.tuning import ChatTemplate, Model
from llm.errors import ConfigError

CONTEXT = {"ignore_unknown_options": True}
OPTIONS = {
    "grpo.loss": (),
    "grpo.group_size": (),
    "grpo.max_answer_tokens": (),
    "grpo.rollout_temperature": (),
    "grpo.kl_coefficient": (),
    "training.max_steps": (),
    "training.batch_size": (),
    "optimizer.learning_rate": ("--lr",),
    "training.seed": (),
    "training.device": (),
}
EXAMPLE = "Example:  llm grpo runs/chat --data prompts.jsonl --reward rewards:sorted_letters --out runs/sorts"
Rewards = Annotated[
    list[str] | None,
    typer.Option(
        "--reward", metavar="NAME", help="module:function, file.py:function or a built-in check; may be repeated."
    ),
]
RewardWeights = Annotated[
    list[float] | None, typer.Option("--reward-weight", help="A weight for each reward, in their order; default: 1.")
]


@with_settings(OPTIONS)
def grpo(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [CONFIG.toml] [section.field=value]...",
            help="The model, a settings file and single settings. A setting is an option too: `--redraws 2`.",
        ),
    ] = None,
    config: Config = None,
    model: Model = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Prompts: .jsonl or .parquet, a directory or glob; may be repeated.")
    ] = None,
    reward: Rewards = None,
    reward_weight: RewardWeights = None,
    out: Out = None,
    chat_template: ChatTemplate = None,
    resume: Resume = False,
    from_step: FromStep = None,
    overwrite: Overwrite = False,
    nproc: NumProcesses = None,
    max_restarts: MaxRestarts = 0,
    dry_run: DryRun = False,
    settings: ListSettings = False,
    **options: Any,
) -> None:
    """Let a model learn from rewards of its own answers, or resume such a run."""
    use_processes("grpo", nproc, max_restarts)
    if settings:
        print("\n".join(settings_table(arguments or [])))
        return
    given = sorted_arguments([*(arguments or []), *([config] if config else [])])
    resume = resume or from_step is not None
    if given.paths and resume and out is None:
        out = given.paths.pop(0)
    elif given.paths and model is None:
        model = given.paths.pop(0)
    if given.paths:
        raise ConfigError(f"one model is expected, got also {', '.join(given.paths)}\nhint: prompts follow `--data`")
    overrides = overrides_of(given, options)
    overrides += [("grpo.reward_weights", reward_weight)] if reward_weight else []
    if dry_run:
        from llm.api import tuning_overrides

        forecast(given, tuning_overrides("prompt", model, data, chat_template, overrides, reward=reward))
        return
    if out is None:
        raise ConfigError("`--out` is missing\nhint: name the run's directory, such as `--out runs/sorts`")
    more: dict[str, Any] = {"chat_template": chat_template, "overwrite": overwrite, "from_step": from_step}
    more |= {"reward": reward, "data": data, "config": given.file, "overrides": overrides}
    _train(out, resume, model, **more)


def _train(out: str, resume: bool, model: str | None, **more: Any) -> None:
    from llm.api import grpo as tune

    run_training("grpo", out, lambda: tune(model, **{"resume" if resume else "out": out}, **more))


command = grpo
