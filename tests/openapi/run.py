"""Sends requests that Schemathesis makes from `/openapi.json`, valid and invalid ones, to a real server.

No response may be a 5xx, contradict its schema or take too long, and afterwards the server must be idle.

Usage: python -m tests.openapi.run [EXAMPLES] [OPTION ...], with options of `schemathesis run`.
"""

import os
import subprocess
import sys
import tempfile
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
        checkpoint = write_checkpoint(Path(directory) / MODEL, "play")
        config = ServerConfig(port=0, engine=EngineConfig(max_model_len=CONTEXT))
        with ServerHandle(checkpoint, config) as server:
            status = subprocess.run(
                [*command(server.url, examples), *options], env=variables | hooks, check=False
            ).returncode
            wait_until(lambda: is_idle(server))
            assert server.process.poll() is None
    sys.exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else EXAMPLES, sys.argv[2:])
