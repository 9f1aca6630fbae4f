"""README.md, CONTRIBUTING.md and docs/ agree with each other and with the project's own files."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "examples" / "README.md", *sorted(DOCS.rglob("*.md"))]
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Anchors of the page's headings, which GitHub and mkdocs derive the same way for plain words."""
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in _HEADING.findall(prose(page))
    }


def metadata(name: str) -> dict:
    return tomllib.loads((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in _LINK.findall(prose(page)):
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_links_stay_inside_the_site(page: Path) -> None:
    targets = [link.partition("#")[0] for link in _LINK.findall(prose(page))]
    assert [target for target in targets if not (page.parent / target).resolve().is_relative_to(DOCS)] == []


def test_the_site_lists_every_page_once() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"- (?:[^:\n]+: )?([\w/-]+\.md)$", nav, re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("start", [ROOT / "README.md", DOCS / "index.md"], ids=lambda page: page.name)
def test_the_pages_to_start_from_link_to_every_other(start: Path) -> None:
    linked = {(start.parent / link.partition("#")[0]).resolve() for link in _LINK.findall(prose(start))} | {start}
    assert [page.name for page in sorted(DOCS.glob("*.md")) if page not in linked] == []


def test_pages_name_the_rust_version_that_cargo_requires() -> None:
    required = metadata("Cargo.toml")["package"]["rust-version"]
    pattern = re.compile(r"\b(?:rust|toolchain)\b[^.|\n]*?\b(1\.\d\d)\b", re.IGNORECASE)
    named = {(page.name, version) for page in PAGES for version in pattern.findall(page.read_text(encoding="utf-8"))}
    assert {version for _, version in named} == {required}, named


def test_files_named_by_the_architecture_page_exist() -> None:
    named = re.findall(r"`((?:python|rust)/[\w/]+(?:\.\w+)?)`", (DOCS / "architecture.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
