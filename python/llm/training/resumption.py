"""Rules for the settings that may change when a run resumes."""

import msgspec

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
    "log_to",
    "sample_tokens",
    "sample_prompt",
}


def check_resumable(old: RunConfig, new: RunConfig) -> None:
    """Checks that `new` changes only settings that may change when a run resumes.

    Raises:
        ConfigError: Another setting changed; the message gives its two values and the settings that may change.
    """
    before, after = msgspec.to_builtins(old), msgspec.to_builtins(new)
    for section, fields in after.items():
        for field, value in fields.items():
            if value != before[section][field] and not (section == "training" and field in _MAY_CHANGE):
                allowed = ", ".join(f"training.{name}" for name in sorted(_MAY_CHANGE))
                raise ConfigError(
                    f"`{section}.{field}` can't change on resume: the run has {before[section][field]!r}, "
                    f"got {value!r}\nhint: start a new run, or change only {allowed}"
                )
