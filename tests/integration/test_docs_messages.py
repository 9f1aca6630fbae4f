"""The messages that the troubleshooting page quotes are those that the sources have."""

import ast
import functools
import re
from collections.abc import Iterator

import pytest

from tests.integration.pages import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
# A paragraph begins with its messages in bold; behind them stands in brackets whose they are, if not the package's.
_LEAD = re.compile(r"(?<=\n\n)((?:\*\*.+?\*\*(?:,\s+|\s+and\s+)?)+)(?:\s+\((cargo|make|pip|Python)\))?", re.DOTALL)
_CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_RUST_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_VALUE = "\0"  # what a template says of the moment


def words_of(node: ast.AST) -> str:
    """The words of a text or of the fixed parts of a formatted one."""
    if isinstance(node, ast.JoinedStr):
        return "".join(words_of(part) for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else _VALUE


def python_texts(source: str) -> Iterator[str]:
    """Texts of a module that are no docstrings."""
    tree = ast.parse(source)
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr | ast.Constant) and node not in docstrings:
            yield words_of(node)


def rust_texts(source: str) -> Iterator[str]:
    for text in _RUST_TEXT.findall(source):
        joined = re.sub(r"\\\n\s*", "", text).replace(r"\"", '"').replace(r"\n", "\n")
        yield re.sub(r"\{[^}]*\}", _VALUE, joined)


@functools.cache
def package_texts() -> list[str]:
    python = [text for file in (ROOT / "python/llm").rglob("*.py") for text in python_texts(file.read_text("utf-8"))]
    rust = [text for file in (ROOT / "rust/src").rglob("*.rs") for text in rust_texts(file.read_text("utf-8"))]
    return [*python, *rust, *(text.replace(_VALUE, "") for text in python)]  # a value may be empty


@functools.cache
def make_texts() -> list[str]:
    return [file.read_text("utf-8") for file in (ROOT / "Makefile", *sorted((ROOT / "tools").glob("*.sh")))]


def quoted() -> list[object]:
    """Each message of the page that is the package's or make's, and whose it is."""
    found = []
    for lead, owner in _LEAD.findall(PAGE.read_text(encoding="utf-8")):
        if owner in {"", "make"}:
            found += [pytest.param(words, owner, id=" ".join(words.split())) for _, words in _CODE.findall(lead)]
    return found


def pattern_of(message: str) -> re.Pattern[str]:
    """A pattern of a message, in which `…` stands for anything and white space for any white space."""
    return re.compile(".*?".join(r"\s+".join(map(re.escape, part.split())) for part in message.split("…")), re.DOTALL)


@pytest.mark.parametrize(("message", "owner"), quoted())
def test_a_quoted_message_is_one_of_the_sources(message: str, owner: str) -> None:
    assert len(re.findall(r"\w", message)) >= 10, "quote more of the message"
    pattern = pattern_of(message)
    assert any(pattern.search(text) for text in (make_texts() if owner else package_texts()))


def test_a_message_that_is_in_no_source_is_found() -> None:
    assert not any(pattern_of("the training data has … sheep").search(text) for text in package_texts())
    assert any(pattern_of("the training data has … samples").search(text) for text in package_texts())


def test_the_page_quotes_messages_of_every_part() -> None:
    assert len(quoted()) > 100
