"""Compares gradients with TRL's in an environment of its own: `python -m tests.compat.sft_trl DIR DIR DIR`."""

import subprocess
import sys

from tests.compat.run import HERE, environment

REQUIREMENTS = ("torch>=2.13", "trl==1.16.*")


def main(folder: str, preferences: str, rollouts: str) -> None:
    """Runs `sft_opened.py`, `preference_opened.py` and `grpo_opened.py` on what their `…_written` left."""
    python = environment("trl", *REQUIREMENTS)
    for name, opened in (("sft", folder), ("preference", preferences), ("grpo", rollouts)):
        subprocess.run([python, str(HERE / f"{name}_opened.py"), opened], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
