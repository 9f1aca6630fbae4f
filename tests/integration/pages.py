"""The pages that readers get, and the fenced blocks in them."""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise, takewhile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_GUIDES = """tokenizers configuration training fine-tuning preferences distillation adapters reinforcement own-task
models quantisation inference sampling serving structured-output clients evaluation extending"""
# In the order in which they are run: a guide may use what one before it left.
GUIDES = [ROOT / "docs" / f"{name}.md" for name in _GUIDES.split()]
TUTORIAL = ROOT / "docs" / "tutorial.md"  # all of its blocks run together, by `tests/tutorial.py`
_VARIABLE = re.compile(r"[A-Z_]+=")
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Line number and content of each fenced block of a language."""
    text = page.read_text(encoding="utf-8")
    found = [match for match in _FENCE.finditer(text) if match[1] == language]
    return [(text.count("\n", 0, match.start(2)), match[2]) for match in found]


def languages(page: Path) -> list[str]:
    """What follows the opening fence of each block."""
    return [match[1] for match in _FENCE.finditer(page.read_text(encoding="utf-8"))]


def _words(line: str) -> list[str]:
    """The words of a line, the shell's operators apart.

    Raises:
        ValueError: Quotes are open at its end.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    return list(lexer)


def _lines(block: str) -> Iterator[list[str]]:
    """The words of each line; a line whose quotes are open goes on in the next one."""
    line = ""
    for part in block.replace("\\\n", " ").splitlines():
        line += part if not line else f"\n{part}"
        try:
            yield _words(line)
        except ValueError:
            continue
        line = ""
    assert not line, f"open quotes: {line}"


class Command(NamedTuple):
    """A command with the variables that are set before it."""

    variables: dict[str, str]
    words: list[str]

    @property
    def program(self) -> str:
        return Path(self.words[0]).name

    @property
    def arguments(self) -> list[str]:
        return self.words[1:]


def commands(page: Path) -> list[Command]:
    """The commands of a page's shell blocks."""
    found = []
    for _, block in blocks(page, "sh"):
        for words in _lines(block):
            operators = [idx for idx, word in enumerate(words) if set(word) <= set("|&;")]
            for start, stop in pairwise([-1, *operators, len(words)]):
                command = words[start + 1 : stop]
                variables = dict(word.split("=", 1) for word in takewhile(_VARIABLE.match, command))
                if command := command[len(variables) :]:
                    found.append(Command(variables, command))
    return found


def commands_of(*programs: str) -> list[object]:
    """The commands of every page that start one of `programs`, each a case of its own."""
    return [
        pytest.param(command, id=f"{name_of(page)}: {' '.join(command.words)}")
        for page in PAGES
        for command in commands(page)
        if command.program in programs
    ]
