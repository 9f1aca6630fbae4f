"""The check of external links finds them in a page, and knows one that answers from one that doesn't."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tools import links

PAGE = """
A [link](https://one.example/a_(b)), <https://two.example/x>, and https://three.example/y. The first
[again](https://one.example/a_(b)); [here](other.md), `https://in.code/` and http://127.0.0.1:8000/v1 don't count.

```sh
curl https://in.block/
```
<!-- https://in.comment/ -->
"""


class Site(BaseHTTPRequestHandler):
    """`/head` answers any method, `/get` only GET, `/moved` leads to `/get`, and nothing else is there."""

    def do_GET(self) -> None:
        self._answer({"/head": 200, "/get": 200, "/moved": 301, "/refused": 403})

    def do_HEAD(self) -> None:
        self._answer({"/head": 200, "/get": 405, "/moved": 301, "/refused": 403})

    def _answer(self, statuses: dict[str, int]) -> None:
        status = statuses.get(self.path, 404)
        self.send_response(status)
        if status == 301:
            self.send_header("Location", "/get")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *words: object) -> None:
        """Says nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_links_of_prose_are_found_once_each() -> None:
    expected = ["https://one.example/a_(b)", "https://three.example/y", "https://two.example/x"]
    assert links.external_links(PAGE) == expected


def test_links_are_found_in_the_repository_s_pages() -> None:
    readme = (links.ROOT / "README.md").read_text(encoding="utf-8")
    assert "https://github.com/vllm-project/vllm" in links.external_links(readme)
    assert links.ROOT / "README.md" in links.pages()
    assert not any(".cache" in page.parts for page in links.pages())


def test_a_link_answers_by_head_by_get_or_after_a_redirect(site: str) -> None:
    found = links.answers([f"{site}/{name}" for name in ("head", "get", "moved", "refused", "gone")])
    assert list(found.values()) == ["200", "200", "200", "403", "404"]
    assert [links.is_alive(answer) for answer in found.values()] == [True, True, True, True, False]


@pytest.mark.parametrize(("link", "expected"), [("http://127.0.0.1:9/", "ConnectError"), ("http://a:b/", "InvalidURL")])
def test_a_server_that_is_not_there_is_a_link_that_fails(link: str, expected: str) -> None:
    [answer] = links.answers([link]).values()
    assert answer == expected
    assert not links.is_alive(answer)


def test_links_that_fail_come_last_with_their_pages() -> None:
    found = {"https://a.example": "404", "https://b.example": "200"}
    places = {"https://a.example": ["README.md", "docs/faq.md"], "https://b.example": ["README.md"]}
    assert links.table(found, places).splitlines() == [
        "200  https://b.example  (README.md)",
        "404  https://a.example  (README.md, docs/faq.md)",
    ]
