"""Keeps of a pytest-benchmark result what is worth comparing: machine, versions, and each test's spread."""

import json
import platform
import sys
from pathlib import Path

KEPT = ("min", "median", "iqr", "max", "rounds", "iterations")


def main(source: Path, target: Path) -> None:
    """Writes the digest of `source`, in seconds a call, and removes `source`."""
    result = json.loads(source.read_text(encoding="utf-8"))
    cpu = result["machine_info"]["cpu"]
    digest = {
        "machine": {"cpu": cpu.get("brand_raw"), "cores": cpu.get("count"), "system": platform.system()},
        "python": result["machine_info"]["python_version"],
        "commit": result["commit_info"]["id"],
        "seconds": {test["name"]: {key: test["stats"][key] for key in KEPT} for test in result["benchmarks"]},
    }
    target.write_text(json.dumps(digest, indent=1) + "\n", encoding="utf-8")
    source.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
