"""Sends requests that Schemathesis makes from `/openapi.json`, valid and invalid ones, to a real server.

No response may be a 5xx, contradict its schema or take too long, and afterwards the server must be idle.

Usage: python -m tests.openapi.run [EXAMPLES] [OPTION ...], with options of `schemathesis run`.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from llm.inference import EngineConfig
from llm.serving import ServerConfig, ServerHandle
from tests.compat.run import environment
from tests.integration.server_client import is_idle, wait_until, write_checkpoint

HERE = Path(__file__).absolute().parent
MODEL = "tiny"
EXAMPLES = 1000
CONTEXT = 64  # answers are short, so that thousands of requests take minutes
TIMEOUT_S = 30
MOST_PROBLEMS = 40


def command(url: str, examples: int) -> list[str | Path]:
    given = os.environ.get("LLM_OPENAPI_PYTHON")
    python = Path(given) if given else environment("schemathesis", "schemathesis==4.*")
    options = {"max-examples": examples, "request-timeout": TIMEOUT_S, "phases": "examples,coverage,fuzzing", "seed": 1}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return [
        python.parent / "schemathesis",
        "--config-file",
        HERE / "schemathesis.toml",
        "run",
        f"{url}/openapi.json",
        *arguments,
    ]


def main(examples: int, options: list[str]) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    hooks = {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE), "LLM_SERVED_MODEL": MODEL}
    with tempfile.TemporaryDirectory() as directory:
        notes = Path(directory) / "notes.jsonl"
        hooks["LLM_OPENAPI_NOTES"] = str(notes)
        checkpoint = write_checkpoint(Path(directory) / MODEL, "play")
        config = ServerConfig(port=0, engine=EngineConfig(max_model_len=CONTEXT))
        with ServerHandle(checkpoint, config) as server:
            status = subprocess.run(
                [*command(server.url, examples), *options], env=variables | hooks, check=False
            ).returncode
            wait_until(lambda: is_idle(server))
            assert server.process.poll() is None
        print_shares(notes)
    sys.exit(status)


def print_shares(notes: Path) -> None:
    """Prints how many requests that follow the document were answered with 2xx, and why others were not."""
    lines = [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()]
    sent, answered = Counter(), Counter()
    for line in lines:
        sent[line["operation"]] += 1
        answered[line["operation"]] += line["status"] < 300
    for operation, number in sent.items():
        print(f"{operation:45} {answered[operation]:6} of {number:6} answered with 2xx")
    print(f"{'all':45} {answered.total():6} of {sent.total():6} answered with 2xx")
    problems = Counter((line["operation"], line["problem"][:160]) for line in lines if "problem" in line)
    for (operation, problem), number in problems.most_common(MOST_PROBLEMS):
        print(f"{number:6} {operation}: {problem}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else EXAMPLES, sys.argv[2:])
