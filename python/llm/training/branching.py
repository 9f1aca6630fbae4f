"""Runs that branch off a checkpoint of a stable run, to let the learning rate decay from there."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from llm.checkpoint import Run, step_of
from llm.errors import ConfigError
from llm.settings.merge import Override, load_run_config
from llm.settings.run import RunConfig
from llm.training.restarts import launcher_facts
from llm.training.resumption import as_begun, check_resumable, checkpoint_to_resume

_STABLE = ("wsd", "constant")
_OF_DECAY = ("decay_fraction", "decay_shape", "min_learning_rate_ratio")
_LONGEST_DECAY = 0.9


def branch_for_decay(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    step: int,
    overrides: Iterable[Override] = (),
    *,
    file: str | os.PathLike[str] | None = None,
) -> Run:
    """Makes the run `out` from the checkpoint of `path` at `step`; resumed, it decays from there to its last step.

    The branch gets copies of the tokenizer, the data, the log and that checkpoint, so both runs go on on their own.
    Without a setting, the decay takes `optimizer.decay_fraction` of the branch's steps.

    Args:
        path: A run whose rate stays at its peak: `optimizer.schedule` is `wsd` or `constant`.
        out: The new run's directory.
        step: The step of a checkpoint after warm-up and before decay.
        overrides: Settings of the branch, such as `training.max_steps`.
        file: TOML with settings of the branch.

    Raises:
        ConfigError: The schedule isn't stable at `step`, no checkpoint is of that step, or `out` holds a run.
        CheckpointError: The checkpoint is damaged, or there is no run.

    Source: Hu et al. 2024, "MiniCPM", section 4.3; Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training
    Beyond Fixed Training Durations", section 3.
    """
    source, branch = Run(path), Run(out)
    config = _branch_config(source.read_config(), step, list(overrides), file)
    checkpoint, _ = checkpoint_to_resume(source, step)
    if checkpoint is None or step_of(checkpoint) != step:
        raise ConfigError(f"`decay_from` must be the step of a checkpoint of {source.path}, got {step}")
    with branch.locked():
        branch.make_free()
        for folder in (source.data, source.tokenizer):
            if folder.is_dir():
                shutil.copytree(folder, branch.path / folder.name, dirs_exist_ok=True)
        for lines in (source.log_file, source.samples.file):
            if lines.is_file():
                shutil.copyfile(lines, branch.path / lines.name)
        target = branch.checkpoint(step).path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".tmp-{target.name}")
        shutil.rmtree(temporary, ignore_errors=True)  # of a start that was killed
        shutil.copytree(checkpoint.path, temporary)
        temporary.rename(target)
        branch.publish(branch.checkpoint(step))
        origin = {"branched_from": str(Path(path).resolve()), "step": step}
        branch.create(config, source.last_facts() | launcher_facts() | origin)
    return branch


def _branch_config(
    old: RunConfig, step: int, overrides: list[Override], file: str | os.PathLike[str] | None
) -> RunConfig:
    _check_stable(old, step)
    asked = load_run_config(file, overrides, base=old).optimizer
    fraction = min(asked.decay_fraction, _LONGEST_DECAY)
    training = msgspec.structs.replace(old.training, max_steps=step + max(1, round(step * fraction / (1 - fraction))))
    decay = {name: getattr(asked, name) for name in _OF_DECAY}
    optimizer = msgspec.structs.replace(old.optimizer, schedule="wsd", decay_from=step, **decay)
    planned = msgspec.structs.replace(old, training=training, optimizer=optimizer)
    config = as_begun(planned, load_run_config(file, overrides, base=planned))
    check_resumable(planned, config)
    if (config.training.max_steps or 0) <= step:
        raise ConfigError(f"`training.max_steps` must be above `decay_from` ({step}), got {config.training.max_steps}")
    return config


def _check_stable(old: RunConfig, step: int) -> None:
    """Raises unless the rate is at its peak at `step`."""
    if old.optimizer.schedule not in _STABLE:
        raise ConfigError(
            f"`decay_from` needs a run whose `optimizer.schedule` is wsd or constant, got {old.optimizer.schedule}\n"
            "hint: start the run with `optimizer.schedule=wsd`"
        )
    started = old.optimizer.decay_from
    if old.optimizer.schedule == "wsd" and started is None and old.training.max_steps is not None:
        started = old.training.max_steps - round(old.optimizer.decay_fraction * old.training.max_steps)
    if old.optimizer.schedule == "wsd" and started is not None and step > started:
        raise ConfigError(f"`decay_from` must be at most {started}, where the run's own decay starts, got {step}")
