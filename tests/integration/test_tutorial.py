"""The tutorial's blocks run in their order, as a reader runs them, with fewer steps of training."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
_BLOCK = re.compile(r"^```(sh|python|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What makes the commands take seconds; each must be found.
SHORTER = {
    "--max-steps 800": "--max-steps 6",
    "--epochs 20": "--max-steps 6",
    "batch_size = 8": "batch_size = 2",
    "validation_fraction = 0.1": "validation_fraction = 0.01",
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def commands(folder: Path) -> Path:
    """A folder with `llm` and `python` of the package under test."""
    found = folder / "bin"
    found.mkdir()
    for name, words in (("llm", "-m llm"), ("python", "")):
        (found / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (found / name).chmod(0o755)
    return found


def shell_script(text: str) -> str:
    """All blocks as one script: Python blocks are programs, and a block of TOML is the file that it names."""
    # A server that a failure leaves behind would hold the output open.
    parts = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for kind, block in _BLOCK.findall(text):
        if kind == "python":
            parts.append(f"python - <<'END'\n{block}END")
        elif kind == "toml":
            name, _, content = block.removeprefix("# ").partition("\n")
            parts.append(f"cat >{name} <<'END'\n{content}END")
        else:
            parts.append(block)
    return "\n".join(parts)


def test_the_tutorial_s_commands_run(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for given, shorter in (SHORTER | {"8000": str(free_port())}).items():
        assert given in text
        text = text.replace(given, shorter)
    environment = os.environ | {"PATH": f"{commands(tmp_path)}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", "-c", shell_script(text)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    # From tokenizer to chat, each stage left what the next one took.
    plays = tmp_path / "plays"
    for left in ("tokenizer/tokenizer.json", "runs/base/report.html", "runs/chat/run.json", "chat-int4/config.json"):
        assert (plays / left).is_file()
    assert '"object":"chat.completion"' in done.stdout
    assert done.stdout.count("Serving chat-int4") == 1
