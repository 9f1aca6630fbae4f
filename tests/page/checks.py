"""What a reader of the chat page does, in a headless browser; imports nothing but Playwright.

Usage: checks.py BROWSER URL GUARDED_URL KEY. The second server needs the key and has a small context.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect, sync_playwright

TIMEOUT_MS = 20_000
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
PROBLEMS: list[str] = []  # errors of the page's scripts, and what its security policy refused
MARKUP = '<script>window.ran = 1</script> <img src="x" onerror="window.ran = 1"> <b>bold</b>'
MARKDOWN = f"""# Title

Some **bold**, *italic*, `code` and [a link](https://example.com/a_b), [no link](javascript:alert), ![pic](https://x.y/z).
{MARKUP}

- one
  - inner **two**
- three

1. first
2. second

> quoted *text*

| a | b |
|---|---|
| `1` | **2** |

```html
{MARKUP}
**not bold**
```
"""


def send(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def set_parameters(page: Page, **values: object) -> None:
    page.get_by_role("button", name="Parameters").click()
    for label, value in values.items():
        page.get_by_label(label.replace("_", " ")).fill(str(value))
    page.get_by_role("button", name="Parameters").click()


def answers(page: Page) -> Locator:
    return page.locator(".message.assistant")


def wait_for_end(page: Page) -> None:
    expect(page.locator("#messages")).to_have_attribute("aria-busy", "false")


def stored(page: Page) -> list[dict]:
    """The conversations in the browser's storage, the newest first."""
    found = page.evaluate(
        "Object.entries(localStorage).filter(([k]) => k.startsWith('llm-oxide.chat.')).map(([, v]) => v)"
    )
    return sorted(map(json.loads, found), key=lambda one: one["updated"], reverse=True)


@contextmanager
def canned(page: Page, *payloads: object, status: int = 200) -> Iterator[list[dict]]:
    """Answers chats with given events, for what a tiny untrained model never says; yields the requests."""
    requests = []

    def answer(route: Route) -> None:
        requests.append(route.request.post_data_json)
        if status != 200:
            route.fulfill(status=status, json=payloads[0])
            return
        events = [json.dumps(payload) for payload in payloads] + ["[DONE]"]
        route.fulfill(content_type="text/event-stream", body="".join(f"data: {event}\n\n" for event in events))

    page.route("**/v1/chat/completions", answer)
    yield requests
    page.unroute("**/v1/chat/completions")


def delta(**values: object) -> dict:
    return {"choices": [{"index": 0, "delta": values, "finish_reason": None}]}


def check_an_answer_streams_and_is_counted(page: Page) -> None:
    set_parameters(page, Maximum_tokens=20, Seed=1, Temperature=1)
    send(page, "Tell me a long story about a river.")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    wait_for_end(page)
    expect(page.locator(".message.user .body")).to_have_text("Tell me a long story about a river.")
    expect(answers(page).locator(".figures")).to_contain_text(
        re.compile(r"^20 tokens · [\d.]+ tokens/s · \d+ in the prompt")
    )
    expect(answers(page)).to_contain_text("The answer reached the limit of tokens.")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    assert stored(page)[0]["messages"][1]["usage"]["completion_tokens"] == 20


def check_the_same_seed_regenerates_the_same_answer(page: Page) -> None:
    set_parameters(page, Maximum_tokens=12, Seed=7, Temperature=1)
    send(page, "Tell me a long story.")
    wait_for_end(page)
    text = stored(page)[0]["messages"][1]["content"]
    answers(page).get_by_role("button", name="Regenerate").click()
    wait_for_end(page)
    assert len(stored(page)[0]["messages"]) == 2
    assert stored(page)[0]["messages"][1]["content"] == text
    set_parameters(page, Seed=8)
    answers(page).get_by_role("button", name="Regenerate").click()
    expect(page.get_by_role("status")).to_contain_text("The answer is complete: 12 tokens.")
    assert stored(page)[0]["messages"][1]["content"] != text


def check_stop_keeps_what_was_written(page: Page) -> None:
    set_parameters(page, Maximum_tokens=1000, Seed=1)
    for stop in (lambda: page.keyboard.press("Escape"), lambda: page.get_by_role("button", name="Stop").click()):
        send(page, "Write a very long story about the sea.")
        expect(answers(page).last.locator(".markdown")).not_to_be_empty()
        stop()
        wait_for_end(page)
        expect(answers(page).last).to_contain_text("Stopped.")
        expect(answers(page).last.locator(".figures")).to_contain_text("about")
        assert stored(page)[0]["messages"][-1]["content"]


def check_editing_a_question_asks_again(page: Page) -> None:
    set_parameters(page, Maximum_tokens=5)
    send(page, "First")
    wait_for_end(page)
    send(page, "Second")
    wait_for_end(page)
    page.locator(".message.user").first.get_by_role("button", name="Edit").click()
    field = page.get_by_label("Edit the message")
    expect(field).to_be_focused()
    field.press("Escape")
    expect(page.locator(".message")).to_have_count(4)
    page.locator(".message.user").first.get_by_role("button", name="Edit").click()
    field.fill("Other")
    field.press("Enter")
    expect(page.locator(".message")).to_have_count(2)
    wait_for_end(page)
    assert stored(page)[0]["messages"][0]["content"] == "Other"


def check_an_edited_answer_is_sent_on(page: Page) -> None:
    set_parameters(page, Maximum_tokens=5, System_prompt="Be brief.", Top_p=0.5)
    send(page, "First")
    wait_for_end(page)
    answers(page).get_by_role("button", name="Edit").click()
    page.get_by_label("Edit the message").fill("My own answer")
    page.get_by_role("button", name="Save").click()
    with canned(page, delta(content="ok")) as requests:
        send(page, "Second")
        wait_for_end(page)
    assert [(one["role"], one["content"]) for one in requests[0]["messages"]] == [
        ("system", "Be brief."),
        ("user", "First"),
        ("assistant", "My own answer"),
        ("user", "Second"),
    ]
    assert (requests[0]["max_tokens"], requests[0]["top_p"]) == (5, 0.5)
    assert "temperature" not in requests[0]


def check_markdown_is_drawn_and_markup_stays_text(page: Page) -> None:
    pieces = [delta(content=MARKDOWN[at : at + 7]) for at in range(0, len(MARKDOWN), 7)]
    with canned(page, *pieces):
        send(page, MARKUP)
        wait_for_end(page)
    text = answers(page).locator(".markdown")
    assert text.locator("h2, strong, em").all_text_contents() == ["Title", "bold", "italic", "two", "text", "2"]
    assert text.locator("li").count() == 5
    assert text.locator("td").all_text_contents() == ["1", "2"]
    assert [link.get_attribute("href") for link in text.locator("a").all()] == [
        "https://example.com/a_b",
        "https://x.y/z",
    ]
    assert text.locator("script, img, b").count() == 0
    expect(text.locator("p").first).to_contain_text(MARKUP)
    expect(text.locator("pre code")).to_have_text(f"{MARKUP}\n**not bold**")
    expect(page.locator(".message.user .body")).to_have_text(MARKUP)
    page.reload()
    expect(answers(page).locator("pre code")).to_have_text(f"{MARKUP}\n**not bold**")
    assert page.evaluate("window.ran") is None


def check_long_odd_texts_are_drawn_quickly(page: Page) -> None:
    texts = [part * 20_000 for part in ("[", "*", "_a ", "`", "**a", "> ", "- ", "|", "](", "\\`", "~~~ ", "[a](b")]
    script = """async (texts) => {
        const { renderInto } = await import("./static/markdown.js");
        const started = performance.now();
        for (const text of texts) renderInto(document.createElement("div"), text);
        return performance.now() - started;
    }"""
    assert page.evaluate(script, texts) < 10_000


def check_code_is_copied(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    with canned(page, delta(content="```python\nprint(1)\n```")):
        send(page, "Code")
        wait_for_end(page)
    page.locator(".code").get_by_role("button", name="Copy").click()
    expect(page.locator(".code").get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "print(1)"


def check_reasoning_is_folded_and_tool_calls_are_shown(page: Page) -> None:
    call = {"index": 0, "id": "1", "function": {"name": "weather", "arguments": '{"city":'}}
    more = {"index": 0, "function": {"arguments": '"Paris"}'}}
    events = [delta(reasoning_content="Let me "), delta(reasoning_content="think."), delta(content="Well: ")]
    with canned(page, *events, delta(tool_calls=[call]), delta(tool_calls=[more])):
        send(page, "Weather?")
        wait_for_end(page)
    reasoning = answers(page).locator("details")
    expect(reasoning).not_to_have_attribute("open", "")
    expect(reasoning.locator("p")).to_have_text("Let me think.")
    expect(answers(page).locator(".markdown").last).to_have_text("Well:")
    expect(answers(page).locator(".code code")).to_have_text('weather({\n  "city": "Paris"\n})')


def check_errors_are_told_with_the_way_out(page: Page) -> None:
    busy = {"error": {"message": "Too many requests wait.", "code": "queue_full"}}
    with canned(page, busy, status=503):
        send(page, "Hello")
        expect(page.get_by_role("alert")).to_contain_text("The server is busy. (Too many requests wait.)")
    set_parameters(page, Maximum_tokens=3)
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    wait_for_end(page)
    expect(page.locator(".message")).to_have_count(2)
    with canned(page, delta(content="Half"), {"error": {"message": "The engine failed.", "code": "engine_error"}}):
        send(page, "Fail in the middle")
        expect(page.get_by_role("alert")).to_contain_text("The engine failed.")
    expect(answers(page).last).to_contain_text("Half")


def check_conversations_are_kept_renamed_and_deleted(page: Page) -> None:
    set_parameters(page, Maximum_tokens=4)
    for text in ("Apples", "Pears"):
        page.get_by_role("button", name="New chat").click()
        send(page, text)
        wait_for_end(page)
    page.reload()
    expect(page.locator(".message.user .body")).to_have_text("Pears")
    expect(page.locator("#conversations .open")).to_have_text(["Pears", "Apples"])
    page.get_by_role("button", name="Apples", exact=True).click()
    expect(page.locator(".message.user .body")).to_have_text("Apples")
    page.get_by_role("button", name="Rename Apples").click()
    page.get_by_label("Title").fill("Fruit")
    page.keyboard.press("Enter")
    expect(page.locator("#conversations .open")).to_have_text(["Pears", "Fruit"])
    page.get_by_role("button", name="Delete Fruit").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#conversations .open")).to_have_count(2)
    page.get_by_role("button", name="Delete Fruit").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#conversations .open")).to_have_text(["Pears"])
    page.reload()
    expect(page.locator("#conversations .open")).to_have_text(["Pears"])


def check_export_holds_the_conversation(page: Page) -> None:
    with canned(
        page, delta(content="**Four**"), {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    ):
        send(page, "Two and two?")
        wait_for_end(page)
    texts = {}
    for kind in ("Markdown", "JSON"):
        page.get_by_text("Export").click()
        with page.expect_download() as download:
            page.get_by_role("button", name=kind).click()
        texts[download.value.suggested_filename] = download.value.path().read_text()
    assert texts["Two-and-two.md"] == "# Two and two?\n\n## You\n\nTwo and two?\n\n## Assistant\n\n**Four**\n"
    exported = json.loads(texts["Two-and-two.json"])
    assert [one["content"] for one in exported["messages"]] == ["Two and two?", "**Four**"]
    assert exported["messages"][1]["usage"]["completion_tokens"] == 2


def check_keys_work_without_a_mouse(page: Page) -> None:
    field = page.get_by_label("Message", exact=True)
    expect(field).to_be_focused()
    field.press_sequentially("one")
    field.press("Shift+Enter")
    field.press_sequentially("two")
    assert field.input_value() == "one\ntwo"
    set_parameters(page, Maximum_tokens=4)
    field.press("Enter")
    wait_for_end(page)
    assert stored(page)[0]["messages"][0]["content"] == "one\ntwo"
    names = page.locator("button:visible, input:visible, textarea:visible, select:visible")
    unnamed = [one.evaluate("e => e.outerHTML") for one in names.all() if not accessible_name(one)]
    assert unnamed == []


def accessible_name(one: Locator) -> str:
    return one.evaluate("e => e.ariaLabel || e.labels?.[0]?.textContent || e.textContent")


def check_dark_and_light(page: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    assert light != dark
    switch = page.get_by_role("button", name="Theme")
    switch.click()
    expect(switch).to_have_text("Theme: light")
    assert page.evaluate(ground) == light
    page.reload()
    assert page.evaluate(ground) == light
    switch.click()
    page.emulate_media(color_scheme="light")
    assert page.evaluate(ground) == dark


def check_phone(context: BrowserContext, url: str) -> None:
    page = opened(context, url)
    set_parameters(page, Maximum_tokens=30)
    send(page, "A long word: " + "x" * 200)
    wait_for_end(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    expect(page.get_by_role("button", name="New chat")).to_be_hidden()
    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_text("Ask something to begin.")).to_be_visible()
    expect(page.get_by_role("button", name="New chat")).to_be_hidden()


def check_key_and_context_limit(context: BrowserContext, url: str, key: str) -> None:
    page = opened(context, url)
    expect(page.get_by_role("alert")).to_contain_text("This server needs an API key.")
    field = page.get_by_label("API key", exact=True)
    expect(field).to_be_focused()
    field.fill("wrong")
    page.get_by_role("button", name="Use key").click()
    expect(page.get_by_role("alert")).to_be_visible()
    field.fill(key)
    page.get_by_role("button", name="Use key").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.get_by_label("Model")).to_have_value("tiny")
    assert key not in page.evaluate("JSON.stringify(localStorage)")
    send(page, "word " * 300)
    expect(page.get_by_role("alert")).to_contain_text("too long for the model")
    expect(page.locator(".message")).to_have_count(1)


def opened(context: BrowserContext, url: str) -> Page:
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    page.on("pageerror", lambda error: PROBLEMS.append(str(error)))
    page.on("console", lambda message: note_violation(message.text))
    page.goto(url)
    return page


def note_violation(text: str) -> None:
    if "Content Security Policy" in text or "Trusted" in text:
        PROBLEMS.append(text)


CHECKS: list[Callable[[Page], None]] = [
    check for name, check in list(globals().items()) if name.startswith("check_") and len(check.__annotations__) == 2
]


def run(browser: Browser, url: str, guarded_url: str, key: str) -> None:
    for check in CHECKS:
        with browser.new_context() as context:
            page = opened(context, url)
            expect(page.get_by_label("Model")).not_to_have_value("")
            check(page)
        print(f"  {check.__name__}", flush=True)
    with browser.new_context(**PHONE) as context:
        check_phone(context, url)
    with browser.new_context() as context:
        check_key_and_context_limit(context, guarded_url, key)
    assert PROBLEMS == []


if __name__ == "__main__":
    executable, *arguments = sys.argv[1:]
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        run(chromium, *arguments)
        print(f"{len(CHECKS) + 2} checks of the chat page passed in Chromium {chromium.version}")
        chromium.close()
