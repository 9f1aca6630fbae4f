"""README.md, CONTRIBUTING.md and docs/ agree with each other and with the project's own files."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def metadata(name: str) -> dict:
    return tomllib.loads((ROOT / name).read_text(encoding="utf-8"))


def test_pages_name_the_rust_version_that_cargo_requires() -> None:
    required = metadata("Cargo.toml")["package"]["rust-version"]
    found = {
        page.name: re.findall(r"(?i)\b(?:rust|toolchain)\b[^.|\n]*?\b(1\.\d+)", page.read_text("utf-8"))
        for page in PAGES
    }
    named = {(name, version) for name, versions in found.items() for version in versions}
    assert {version for _, version in named} == {required}, named
