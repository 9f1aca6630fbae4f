"""The examples run as their first lines say; the client's example is run by the server's tests."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_inference_demo_shows_the_four_ways_to_ask(tiny_checkpoint: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "inference_demo.py"), str(tiny_checkpoint)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    shown = done.stdout.decode(errors="replace")
    for part in ("— one prompt", "— a batch", "— a stream", "— a chat", " tokens]"):
        assert part in shown


def test_every_example_is_tested() -> None:
    tested = {"inference_demo.py", "openai_client_demo.py"}
    assert {file.name for file in EXAMPLES.glob("*.py")} == tested
