"""Prints what extras of pyproject.toml require, one requirement a line, for `pip install --requirement`.

`python tools/requirements.py test bench` lets make add an extra without building the package again.
"""

import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def main() -> None:
    """Prints the requirements of the extras named on the command line."""
    extras = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for name in sys.argv[1:]:
        if name not in extras:
            sys.exit(f"error: no extra {name!r} in {PROJECT.name}; known are {', '.join(extras)}")
        sys.stdout.write("\n".join(extras[name]) + "\n")


if __name__ == "__main__":
    main()
