"""The scripts under tools/ that make and the commit hook call."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)


def commit_message(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "message"
    file.write_text(text, encoding="utf-8")
    return run(sys.executable, TOOLS / "commit_message.py", file)


@pytest.mark.parametrize(
    "subject",
    [
        "scheduler: reuse prefix blocks across requests",
        "docs, tests: add a page",
        "Merge branch 'x'",
        "ci: seed caches",
    ],
)
def test_commit_message_in_the_imperative_passes(tmp_path: Path, subject: str) -> None:
    assert commit_message(tmp_path, f"{subject}\n\nWhy.\n").returncode == 0


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("tokenizer: pieces made to share a line are apart", "imperative"),
        ("tokenizer: added a page", "imperative"),
        ("tokenizer: the results say more", "imperative"),
        ("Reuse prefix blocks", "part:"),
        ("docs: add a page.", "full stop"),
        ("docs: " + "x" * 70, "at most 72"),
    ],
)
def test_commit_message_that_breaks_a_rule_is_refused(tmp_path: Path, subject: str, words: str) -> None:
    done = commit_message(tmp_path, f"{subject}\n")
    assert (done.returncode, words in done.stderr) == (1, True)


def test_step_hides_the_output_of_what_works() -> None:
    done = run(TOOLS / "step.sh", "counting", "echo", "one")
    assert done.returncode == 0
    assert re.fullmatch(r"» counting\n» counting · done in \d+ s\n", done.stdout)


def test_step_shows_the_output_and_the_exit_code_of_what_fails() -> None:
    done = run(TOOLS / "step.sh", "counting", "bash", "-c", "echo reason; exit 3")
    assert done.returncode == 3
    assert re.fullmatch(r"reason\nerror: counting failed with exit code 3 after \d+ s\n", done.stderr)


def test_requirements_are_those_of_the_extras() -> None:
    assert "openai" in run(sys.executable, TOOLS / "requirements.py", "demo").stdout
    assert "no extra 'nothing'" in run(sys.executable, TOOLS / "requirements.py", "nothing").stderr
