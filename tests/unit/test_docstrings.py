"""Examples in docstrings run as written."""

import doctest
import importlib
import pkgutil

import pytest

import llm

# Modules for environments with the extras `lm-eval` and `ray`.
SKIPPED = ("__main__", "._rust", ".evaluation.harness", ".serving.ray")
MODULES = [info.name for info in pkgutil.walk_packages(llm.__path__, "llm.") if not info.name.endswith(SKIPPED)]


@pytest.mark.parametrize("name", ["llm", *MODULES])
def test_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name), verbose=False).failed == 0


def test_there_are_examples_to_run() -> None:
    finder = doctest.DocTestFinder()
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 4
