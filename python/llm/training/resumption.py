"""What a run resumes from, and what may change meanwhile."""

from collections.abc import Mapping
from typing import Any

import msgspec

from llm.checkpoint import Checkpoint, Run, step_of
from llm.errors import ConfigError
from llm.settings.run import RunConfig

_MAY_CHANGE = {  # of the section `training`
    "epochs",
    "max_steps",
    "device",
    "log_every",
    "validate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "async_save",
    "sharding",
    "process_timeout_s",
    "keep_best",
    "stop_after_validations",
    "log_to",
    "profile_steps",
    "sample_tokens",
    "sample_prompt",
}

_DATA_MAY = {"validation_tokens", "log_samples"}

# Facts about a start that change the last digits of results, with the words for them.
_FACTS = {"torch": "PyTorch", "num_threads": "threads", "world_size": "processes", "device": "device"}


def as_begun(old: RunConfig, new: RunConfig) -> RunConfig:
    """Returns `new` with what the run chose at its start where `new` leaves the choice open again."""
    if new.training.compile != "auto":
        return new
    return msgspec.structs.replace(new, training=msgspec.structs.replace(new.training, compile=old.training.compile))


def check_resumable(old: RunConfig, new: RunConfig, *, has_checkpoint: bool = True) -> None:
    """Checks that `new` changes only settings that may change when a run resumes.

    Args:
        old: Settings of the run.
        new: Settings that are asked for.
        has_checkpoint: Whether there is a checkpoint to resume from; without one, the run can also start anew.

    Raises:
        ConfigError: Another setting changed; the message gives its two values and the settings that may change.
    """
    before, after = msgspec.to_builtins(old), msgspec.to_builtins(new)
    for section, fields in after.items():
        for field, value in fields.items():
            if value != before[section][field] and not _may_change(section, field, before[section][field], value):
                allowed = ", ".join(f"training.{name}" for name in sorted(_MAY_CHANGE))
                allowed += ", the weights of data.sources, " + ", ".join(f"data.{name}" for name in sorted(_DATA_MAY))
                hint = f"start a new run, or change only {allowed}"
                if not has_checkpoint:
                    hint = "the run has no checkpoint yet: leave out `--resume` to start it anew with these settings"
                raise ConfigError(
                    f"`{section}.{field}` can't change on resume: the run has {before[section][field]!r}, "
                    f"got {value!r}\nhint: {hint}"
                )


def _may_change(section: str, field: str, old: Any, new: Any) -> bool:
    if section != "data":
        return section == "training" and field in _MAY_CHANGE
    if field != "sources":
        return field in _DATA_MAY
    return [source | {"weight": 0} for source in old] == [source | {"weight": 0} for source in new]


def checkpoint_to_resume(run: Run, from_step: int | None = None) -> tuple[Checkpoint | None, list[str]]:
    """Returns the newest undamaged checkpoint and what is wrong with newer ones; None if the run has no checkpoint.

    Args:
        run: The run.
        from_step: The step of the checkpoint to take; None takes the newest.

    Raises:
        ConfigError: No checkpoint is of that step.
        CheckpointError: The checkpoint of that step is damaged, or all are.
    """
    if from_step is not None:
        steps = [step_of(entry) for entry in run.checkpoints()]
        if from_step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise ConfigError(f"`from_step` must be the step of a checkpoint of {run.path} ({there}), got {from_step}")
    return run.whole_checkpoint(from_step)


def changed_facts(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns a sentence about what differs from the earlier start of a run; empty if nothing that matters does."""
    changes = [
        f"{word} {before[name]} → {now[name]}"
        for name, word in _FACTS.items()
        if name in before and name in now and before[name] != now[name]
    ]
    return [f"{', '.join(changes)}: results agree to rounding, no longer to the byte"] if changes else []
