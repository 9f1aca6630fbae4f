"""README.md and the guides in docs/ show what works: their Python runs; commands, options and settings exist."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import typer
from tools.docs_tables import TABLES, filled

from llm import LLM, SamplingParams
from llm.checkpoint import COMPLETE
from llm.cli.main import app
from llm.settings.merge import load_run_config
from llm.settings.run import RunConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_GUIDES = """tokenizers configuration training fine-tuning preferences distillation reinforcement own-task models
quantisation inference sampling serving clients evaluation"""
GUIDES = [ROOT / "docs" / f"{name}.md" for name in _GUIDES.split()]
TUTORIAL = ROOT / "docs" / "tutorial.md"  # all of its blocks run together, in a test of their own
SHELL = ("sh", "console")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SETTING = re.compile(r"\w+\.\w+=")


def blocks(page: Path, languages: tuple[str, ...]) -> list[tuple[int, str]]:
    """Line number and content of each fenced block of one of `languages`."""
    text = page.read_text(encoding="utf-8")
    found = [match for match in _FENCE.finditer(text) if match[1] in languages]
    return [(text.count("\n", 0, match.start(2)), match[2]) for match in found]


def script_of(page: Path) -> str:
    """All Python blocks as one script whose line numbers are the page's, so that a traceback points there."""
    lines = [""] * page.read_text(encoding="utf-8").count("\n")
    for start, block in blocks(page, ("python",)):
        content = block.splitlines()
        lines[start : start + len(content)] = content
    return "\n".join(lines)


def run_page(page: Path, directory: Path) -> str:
    """Runs a page's Python in `directory` and returns what it printed."""
    command = [sys.executable, "-X", "utf8", "-c", script_of(page)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def command_words(block: str) -> Iterator[list[str]]:
    """The words of each line; a line whose quotes are open goes on in the next one."""
    line = ""
    for part in block.splitlines():
        line += part if not line else f"\n{part}"
        try:
            yield shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError:
            continue
        line = ""
    assert not line, f"open quotes: {line}"


def shell_words(page: Path) -> list[list[str]]:
    """The commands of a page's shell blocks, each as its words; variables set before a command are left out."""
    commands = []
    for _, block in blocks(page, SHELL):
        for words in command_words(block.replace("\\\n", " ")):
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            commands += [words] if words else []
    return commands


def commands_named(name: str) -> list[object]:
    """The words that follow `name` in every command of every page, each a case of its own."""
    found = []
    for page in PAGES:
        for words in shell_words(page):
            if name in words:
                rest = words[words.index(name) + 1 :]
                rest = rest[:-1] if rest[-1:] == ["&"] else rest
                found.append(pytest.param(rest, id=f"{page.name}: {name} {' '.join(rest)}"))
    return found


def test_readme_python_trains_answers_and_serves(tmp_path: Path, corpus_file: Path) -> None:
    (tmp_path / "corpus.txt").write_bytes(corpus_file.read_bytes())
    printed = run_page(ROOT / "README.md", tmp_path)
    checkpoints = sorted((tmp_path / "runs" / "base" / "checkpoints").iterdir())
    assert [checkpoint.name for checkpoint in checkpoints] == ["step_00000020", "step_00000040"]
    assert all((checkpoint / COMPLETE).is_file() for checkpoint in checkpoints)
    first, last = (LLM(checkpoint) for checkpoint in checkpoints)
    params = SamplingParams(max_tokens=24, seed=1)
    messages = [{"role": "user", "content": "What news?"}]
    continued, chatted = first.generate("ROMEO:\n", params).text, first.chat(messages, params).text
    streamed = last.chat(messages, params).text
    assert printed == f"{continued}\n{continued}\n{chatted}\n{streamed}['LlamaForCausalLM']\n"


def test_guides_python_runs_as_written(tmp_path: Path, corpus_file: Path) -> None:
    (tmp_path / "corpus.txt").write_bytes(corpus_file.read_bytes())
    for guide in GUIDES:  # a guide may use what one before it left in the directory
        run_page(guide, tmp_path)


def test_every_page_with_python_is_run() -> None:
    assert {page for page in PAGES if blocks(page, ("python",))} <= {ROOT / "README.md", *GUIDES, TUTORIAL}


@pytest.mark.parametrize("words", commands_named("llm"))
def test_shown_commands_and_options_exist(words: list[str]) -> None:
    command = typer.main.get_command(app)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no verb {words[0]}; there are {sorted(command.commands)}"
        command, words = command.commands[words[0]], words[1:]
    if "--help" in words:
        return
    context = command.make_context(command.name, list(words))
    settings = [value for value in context.params.get("settings") or () if _SETTING.match(value)]
    load_run_config(overrides=settings, environ={})


@pytest.mark.parametrize("words", commands_named("make"))
def test_shown_make_targets_exist(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \??:?= ?", makefile, re.MULTILINE)) | {"PIP_FIND_LINKS"}
    named = {word for word in words if "=" not in word}
    assert named <= targets
    assert {word.partition("=")[0] for word in words if "=" in word} <= variables


def test_guides_show_every_settings_table_as_declared() -> None:
    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    assert [filled(page) for page in pages] == pages, "run `make docs-tables`"
    assert sorted(re.findall(r"<!-- settings: (\w+) -->", "".join(pages))) == sorted(TABLES)
    assert {kind for _, kind in TABLES.values()} >= {type(section) for section in struct_values(RunConfig())}


def struct_values(config: msgspec.Struct) -> list[object]:
    return [getattr(config, name) for name in config.__struct_fields__]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_say_their_language(page: Path) -> None:
    fences = re.findall(r"^```(\w*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) % 2 == 0
    assert all(opening and not closing for opening, closing in list(pairwise(fences))[::2])
