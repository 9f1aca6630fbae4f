"""The chat page's files and headers; `make test-page` opens the page in a browser."""

import re

import pytest

from llm.serving.endpoints.page import ASSETS
from tests.unit.test_serving_app import loading_app, send

PATHS = ["/", *(f"/static/{name}" for name in sorted(ASSETS))]


@pytest.mark.parametrize("path", PATHS)
def test_page_files_need_no_key_and_forbid_foreign_and_inline_scripts(path):
    response = send(loading_app(api_keys=("secret",)), "GET", path)
    assert response.status_code == 200
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"


def test_page_loads_only_files_that_are_served_and_holds_no_inline_script_or_style():
    html = ASSETS["index.html"].body.decode()
    named = set(re.findall(r'(?:src|href)="([^"#]*)"', html))
    assert named == {"static/icon.svg", "static/chat.css", "static/theme.js", "static/chat.js"}
    assert {path.removeprefix("static/") for path in named} <= set(ASSETS)
    assert re.findall(r"<style|style=|<script>| on\w+=", html) == []
    imported = {
        name
        for asset in ASSETS.values()
        if asset.content_type.startswith(b"text/javascript")
        for name in re.findall(r'from "\./([^"]+)"', asset.body.decode())
    }
    assert imported <= set(ASSETS)


@pytest.mark.parametrize("name", sorted(name for name in ASSETS if name.endswith(".js")))
def test_scripts_never_turn_text_into_markup(name):
    source = ASSETS[name].body.decode()
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", source) == []


def test_unchanged_file_is_not_sent_again():
    app = loading_app()
    first = send(app, "GET", "/static/chat.js")
    etag = first.headers["etag"]
    for sent in (etag, f"W/{etag}", f'"other", {etag}'):
        again = send(app, "GET", "/static/chat.js", headers={"if-none-match": sent})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert send(app, "GET", "/static/chat.js", headers={"if-none-match": '"other"'}).content == first.content


def test_head_gives_the_length_without_the_body():
    response = send(loading_app(), "HEAD", "/")
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) == len(ASSETS["index.html"].body)


@pytest.mark.parametrize("path", ["/static/", "/static/other.js", "/static/../page.py", "/static/%2e%2e/page.py"])
def test_no_other_file_is_served(path):
    assert send(loading_app(), "GET", path).status_code == 404


@pytest.mark.parametrize("path", ["/", "/static/chat.js"])
def test_page_can_be_turned_off(path):
    assert send(loading_app(chat_page=False), "GET", path).status_code == 404
