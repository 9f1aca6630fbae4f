"""Fetches the official JSON Schema test suite, which the source archive of `jsonschema` carries, and runs it."""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.compat.run import environment, pip_of

SUITE = Path(__file__).parents[2] / ".cache" / "json-schema-suite"
ARCHIVE = "jsonschema==4.25.1"
# What builds the archive: pip asks it for the archive's metadata before it hands the archive out.
BUILDER = "hatchling==1.28.*"
PLUGINS = ("hatch-vcs", "hatch-fancy-pypi-readme")


def fetch() -> Path:
    """The folder of the suite, fetched if it is missing."""
    tests = SUITE / "json" / "tests"
    if tests.exists():
        return tests
    pip = pip_of(environment("hatchling", BUILDER))
    subprocess.run([*pip, "install", "--quiet", *PLUGINS], check=True)
    with tempfile.TemporaryDirectory() as directory:
        options = ["--quiet", "--no-deps", "--no-binary=:all:", "--no-build-isolation", "--dest", directory]
        subprocess.run([*pip, "download", *options, ARCHIVE], check=True)
        (archive,) = Path(directory).glob("*.tar.gz")
        with tarfile.open(archive) as files:
            files.extractall(directory, filter="data")
        next(Path(directory).glob("*/json")).parent.rename(SUITE)
    return tests


if __name__ == "__main__":
    sys.exit(subprocess.run([sys.executable, "-m", "tests.schemas.suite", fetch()], check=False).returncode)
