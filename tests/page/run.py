"""Opens the chat page of real servers in a headless Chromium, in an environment that holds Playwright.

Usage: python -m tests.page.run [DIRECTORY], which takes the pictures of the documentation instead.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from llm.inference import EngineConfig
from llm.serving import ServerConfig, ServerHandle
from tests.compat.run import environment
from tests.integration.server_client import write_checkpoint

HERE = Path(__file__).parent
KEY = "secret"
SMALL_CONTEXT = 256
MODEL = Path(__file__).parents[2] / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        sys.exit(f"error: no browser found, looked for {', '.join(BROWSERS)}\nhint: install Debian's `chromium`")
    return found


def run_script(name: str, *arguments: str) -> None:
    python = os.environ.get("LLM_PAGE_PYTHON") or environment("playwright", "playwright")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([python, HERE / name, browser(), *arguments], env=variables, check=True)


def check() -> None:
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = write_checkpoint(Path(directory) / "tiny", "play")
        small = ServerConfig(port=0, api_keys=(KEY,), engine=EngineConfig(max_model_len=SMALL_CONTEXT))
        with ServerHandle(MODEL, config()) as server, ServerHandle(checkpoint, small) as guarded:
            run_script("checks.py", server.url, guarded.url, KEY)


def config() -> ServerConfig:
    return ServerConfig(port=0, served_model_name=("SmolLM2-135M",), engine=EngineConfig(max_model_len=4096))


def take_screenshots(directory: str) -> None:
    with ServerHandle(MODEL, config()) as server:
        run_script("screenshots.py", server.url, directory)


if __name__ == "__main__":
    take_screenshots(sys.argv[1]) if len(sys.argv) > 1 else check()
