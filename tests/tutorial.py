"""The tutorial's blocks run in their order, as a reader runs them, with fewer steps of training.

    python tests/tutorial.py

runs them in an empty directory with the `llm` and `python` of the environment that this interpreter belongs to. `make
test-wheel` does so in an environment that has the wheel and `openai`, and nothing of this repository.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
TIMEOUT_S = 600
_BLOCK = re.compile(r"^```(sh|python|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What makes the commands take seconds; each must be found.
SHORTER = {
    "--max-steps 800": "--max-steps 6",
    "--epochs 20": "--max-steps 6",
    "batch_size = 8": "batch_size = 2",
    "validation_fraction = 0.1": "validation_fraction = 0.01",
}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


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


def main() -> None:
    """Fails with the output if a command fails, or if a stage didn't leave what the next one takes."""
    text = PAGE.read_text(encoding="utf-8")
    for given, shorter in (SHORTER | {"8000": str(free_port())}).items():
        if given not in text:
            sys.exit(f"the tutorial no longer says {given!r}")
        text = text.replace(given, shorter)
    programs = Path(sys.executable).parent
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            ["bash", "-c", shell_script(text)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            # A server that the script started would go on.
            os.killpg(process.pid, signal.SIGKILL)
            sys.exit(f"not done after {TIMEOUT_S} s:\n{process.communicate()[0]}")
        plays = Path(folder) / "plays"
        left = ("tokenizer/tokenizer.json", "runs/base/report.html", "runs/chat/run.json", "chat-int4/config.json")
        missing = [name for name in left if not (plays / name).is_file()]
    said = [words for words in ('"object":"chat.completion"', "Serving chat-int4") if words not in output]
    if process.returncode or missing or said:
        sys.exit(f"exit code {process.returncode}, missing files {missing}, not said {said}:\n{output}")
    print("the tutorial's commands work")


if __name__ == "__main__":
    main()
