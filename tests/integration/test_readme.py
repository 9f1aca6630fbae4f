"""README.md and the guides in docs/ show what works: their Python runs, and their tables of settings are complete."""

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tools.docs_tables import TABLES, filled

from llm import LLM, SamplingParams
from llm.checkpoint import COMPLETE
from llm.settings.run import RunConfig
from tests.integration.pages import GUIDES, PAGES, README, TUTORIAL, blocks, languages, name_of

# A test runs or parses each of them, but `text` and `mermaid`, which draw.
LANGUAGES = {"sh", "python", "toml", "json", "yaml", "text", "mermaid"}


def script_of(page: Path) -> str:
    """All Python blocks as one script whose line numbers are the page's, so that a traceback points there."""
    lines = [""] * page.read_text(encoding="utf-8").count("\n")
    for start, block in blocks(page, "python"):
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


def test_readme_python_trains_answers_and_serves(tmp_path: Path, corpus_file: Path) -> None:
    (tmp_path / "corpus.txt").write_bytes(corpus_file.read_bytes())
    printed = run_page(README, tmp_path)
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
    assert {page for page in PAGES if blocks(page, "python")} <= {README, *GUIDES, TUTORIAL}


def test_guides_show_every_settings_table_as_declared() -> None:
    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    assert [filled(page) for page in pages] == pages, "run `make docs-tables`"
    assert sorted(re.findall(r"<!-- settings: (\w+) -->", "".join(pages))) == sorted(TABLES)
    assert {kind for _, kind in TABLES.values()} >= {type(section) for section in struct_values(RunConfig())}


def struct_values(config: msgspec.Struct) -> list[object]:
    return [getattr(config, name) for name in config.__struct_fields__]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_in_a_language_that_is_checked(page: Path) -> None:
    fences = re.findall(r"^\s*(?:```|~~~)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len(languages(page)), "a fence is open, indented or of another kind"
    assert set(languages(page)) - LANGUAGES == set()
