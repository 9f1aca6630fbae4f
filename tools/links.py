"""Asks every external link of the Markdown files whether it answers: `make test-links`.

A link is asked by HEAD, and by GET where that is refused; redirects are followed. Exits with 1 if a link fails.
"""

import re
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
_NOT_PROSE = re.compile(r"^```.*?^```$|(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)|<!--.*?-->", re.MULTILINE | re.DOTALL)
# Parentheses within a link come in pairs, as in Wikipedia's.
_LINK = re.compile(r"https?://(?:[^\s()<>\"]|\([^\s()<>]*\))+")
_OWN_MACHINE = re.compile(r"https?://(?:localhost|127\.|\[::1\])")
_TIMEOUT_S = 20
_AT_ONCE = 8
_AGENT = "Mozilla/5.0 (compatible; llm-oxide link check)"


def external_links(text: str) -> list[str]:
    """Returns the distinct links of a page that lead to other machines, sorted; those in code are left out."""
    found = {link.rstrip(".,;:!?'*_") for link in _LINK.findall(_NOT_PROSE.sub(" ", text))}
    return sorted(link for link in found if not _OWN_MACHINE.match(link))


def pages() -> list[Path]:
    """Returns the Markdown files of the repository, without those in folders that hold no sources."""
    folders = ("docs", "examples", "benches", "deploy", "docker", "findings", "python", ".github")
    below = [page for folder in folders for page in (ROOT / folder).rglob("*.md")]
    return sorted([*ROOT.glob("*.md"), *below])


def answer_of(link: str, client: httpx.Client) -> str:
    """Returns the status that a link answers with, or what went wrong."""
    try:
        response = client.head(link)
        if response.is_error:  # some servers know no HEAD
            with client.stream("GET", link) as response:
                return str(response.status_code)
        return str(response.status_code)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return type(error).__name__


def is_alive(answer: str) -> bool:
    """Whether an answer says that the page is there; 403 and 429 come from servers that refuse programs."""
    return answer.startswith("2") or answer in {"403", "429"}


def answers(links: Iterable[str]) -> dict[str, str]:
    """Returns the answer of each link, asked side by side."""
    asked = list(links)
    headers = {"User-Agent": _AGENT}
    with (
        httpx.Client(follow_redirects=True, timeout=_TIMEOUT_S, headers=headers) as client,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        return dict(zip(asked, pool.map(lambda link: answer_of(link, client), asked), strict=True))


def table(found: dict[str, str], places: dict[str, list[str]]) -> str:
    """Returns a line per link: its answer, the link and the pages that have it; those that fail come last."""
    rows = sorted(found.items(), key=lambda row: (not is_alive(row[1]), row[0]))
    width = max(map(len, found.values()), default=0)
    return "".join(f"{answer:{width}}  {link}  ({', '.join(places[link])})\n" for link, answer in rows)


def main() -> int:
    """Prints the table; returns 1 if a link fails or there is none."""
    places: dict[str, list[str]] = {}
    for page in pages():
        for link in external_links(page.read_text(encoding="utf-8")):
            places.setdefault(link, []).append(str(page.relative_to(ROOT)))
    found = answers(places)
    failed = [link for link, answer in found.items() if not is_alive(answer)]
    sys.stdout.write(f"{table(found, places)}{len(found)} links, {len(failed)} fail\n")
    return int(bool(failed) or not found)


if __name__ == "__main__":
    sys.exit(main())
