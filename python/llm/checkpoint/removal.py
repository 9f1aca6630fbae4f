"""Removal of what runs write from their directories, and of nothing else."""

import shutil
from pathlib import Path

_CHECKPOINTS = ("checkpoints/step_*", "checkpoints/.tmp-step_*", "checkpoints/.old-step_*")
# Patterns below a run's directory; `run.json` goes first, so that half a run is never taken for a whole one.
_WRITTEN = (
    "run.json",
    "latest",
    "best",
    *_CHECKPOINTS,
    "data/*.bin",
    "data/*.ends",
    "data/*.json",
    "data/packed-*.npy",
    "data/samples.rank*.jsonl",
    "data/.tmp-*",
    "dumps/step_*",
    "profile/trace_*",
    "profile/table_*",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/chat_template.jinja",
    "tensorboard/events.out.*",
    "about.json",
    "log.csv",
    "log.jsonl",
    "loss.png",
    "report.html",
    "samples.jsonl",
    "wandb_id",
    ".tmp-*",
)
_FOLDERS = ("checkpoints", "data", "dumps", "profile", "tokenizer", "tensorboard")
# Held by the process that trains in the directory.
LOCK = ".lock"
# Holds what a start prepares while an old run is still in place.
STARTING = ".starting"


def remove_written(directory: Path) -> None:
    """Removes what a run wrote into `directory`; other files stay, and so does a folder that holds one."""
    for entry in _written(directory):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    for folder in _FOLDERS:
        if (directory / folder).is_dir() and not any((directory / folder).iterdir()):
            (directory / folder).rmdir()


def foreign_entries(directory: Path) -> list[str]:
    """Returns the names in `directory` that are not a run's."""
    written = {entry.relative_to(directory).parts[0] for entry in _written(directory)}
    return sorted(
        entry.name for entry in directory.iterdir() if entry.name not in {*written, *_FOLDERS, LOCK, STARTING}
    )


def written_checkpoints(directory: Path) -> list[Path]:
    """Returns the directories of checkpoints in a run's directory, those that a crash left incomplete among them."""
    return [entry for pattern in _CHECKPOINTS for entry in directory.glob(pattern)]


def _written(directory: Path) -> list[Path]:
    return [entry for pattern in _WRITTEN for entry in sorted(directory.glob(pattern))]
