"""The TOML, JSON and YAML of all pages parse, and what configures this package is valid for it."""

import json
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from llm.settings.keys import read_key_file
from llm.settings.merge import load_run_config
from llm.settings.server import load_server_config
from tests.integration.pages import PAGES, blocks, name_of

# Files that are no settings of a run, by the page's name, in the page's order.
READERS: dict[str, list[Callable[[str], object]]] = {
    "clients.md": [Path],  # of another program
    "serving.md": [read_key_file, partial(load_server_config, settings={}, environ={})],
}
run_settings = partial(load_run_config, environ={})


def of_language(language: str) -> list[object]:
    """Every block of a language, each a case of its own."""
    return [
        pytest.param(page, number, block, id=f"{name_of(page)}:{line}")
        for page in PAGES
        for number, (line, block) in enumerate(blocks(page, language))
    ]


@pytest.mark.parametrize(("page", "number", "block"), of_language("toml"))
def test_toml_is_read_by_what_it_is_for(page: Path, number: int, block: str, tmp_path: Path) -> None:
    assert tomllib.loads(block)
    file = tmp_path / "shown.toml"
    file.write_text(block, encoding="utf-8")
    readers = READERS.get(page.name)
    (readers[number] if readers else run_settings)(str(file))


@pytest.mark.parametrize(("page", "number", "block"), of_language("json"))
def test_json_is_one_value_or_a_value_a_line(page: Path, number: int, block: str) -> None:
    try:
        assert json.loads(block)
    except json.JSONDecodeError:
        assert [json.loads(line) for line in block.splitlines()]


@pytest.mark.parametrize(("page", "number", "block"), of_language("yaml"))
def test_yaml_parses_and_manifests_are_valid(page: Path, number: int, block: str) -> None:
    document = yaml.safe_load(block)
    assert document
    if "apiVersion" in document:
        kubernetes_validate.validate(document, "1.37", strict=True)
