"""The scripts in findings/ are listed with their versions; nothing here runs them, they need the network."""

import re
from pathlib import Path

FINDINGS = Path(__file__).parents[2] / "findings"
SCRIPTS = sorted(FINDINGS.glob("*-*.sh"))


def test_readme_lists_every_script_once():
    readme = (FINDINGS / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[[\w-]+\]\(([\w.-]+)\)", readme, re.MULTILINE) == [script.name for script in SCRIPTS]


def test_scripts_install_pinned_packages_and_leave_this_one_out():
    for script in SCRIPTS:
        text = script.read_text(encoding="utf-8")
        (packages,) = re.findall(r"^install (.+)$", text, re.MULTILINE)
        assert all(re.fullmatch(r"[a-z][a-z0-9-]*==[\d.]+", package) for package in packages.split()), script.name
        assert not re.search(r"\b(import|from) llm\b", text), script.name
        version = packages.split()[0].partition("==")[2]
        assert version in text.splitlines()[1], f"{script.name} must name the version in its first sentence"
