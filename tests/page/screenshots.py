"""Takes the documentation's pictures of the chat page; imports nothing but Playwright.

Usage: screenshots.py BROWSER URL DIRECTORY.
"""

import sys
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright

DESKTOP = {"viewport": {"width": 1100, "height": 720}}
PHONE = {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 1.5, "is_mobile": True, "has_touch": True}
QUESTIONS = ("Write a Python function that reverses a string.", "Write a haiku about the sea.")


def take(browser: Browser, url: str, file: Path, scheme: str, options: dict, *, parameters: bool) -> None:
    with browser.new_context(**options, color_scheme=scheme) as context:
        page = context.new_page()
        page.goto(url)
        expect(page.get_by_label("Model")).not_to_have_value("")
        toggle = page.get_by_role("button", name="Parameters")
        toggle.click()
        for label, value in {"Temperature": 0, "Maximum tokens": 170, "Seed": 1}.items():
            page.get_by_label(label).fill(str(value))
        for question in QUESTIONS[::-1]:
            page.locator("#new-chat").dispatch_event("click")
            page.get_by_label("Message", exact=True).fill(question)
            page.keyboard.press("Enter")
            expect(page.locator(".message.assistant .figures")).to_contain_text("in the prompt", timeout=60_000)
        if not parameters:
            toggle.click()
        page.locator("#scroller").evaluate("scroller => scroller.scrollTo(0, 0)")
        page.screenshot(path=file)


if __name__ == "__main__":
    executable, url, directory = sys.argv[1:]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        take(chromium, url, Path(directory) / "chat-light.png", "light", DESKTOP, parameters=True)
        take(chromium, url, Path(directory) / "chat-dark.png", "dark", DESKTOP, parameters=False)
        take(chromium, url, Path(directory) / "chat-phone.png", "light", PHONE, parameters=False)
        chromium.close()
