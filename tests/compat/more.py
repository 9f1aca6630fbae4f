"""Runs clients and frameworks, each in an environment of its own, against one server whose model says given texts.

Prints a line for each: its version, what it did, and in how many seconds. Names as arguments run only those.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from llm.serving import ServerConfig, ServerHandle
from tests.compat.run import ENVIRONMENTS, HERE, NPM_PACKAGES, VERSIONS, environment, npm_script
from tests.compat.talk import SCRIPTS, TEMPLATE
from tests.scripted import write_scripted

# A new version gets a new environment: its name holds the version of the first package.
FRAMEWORKS = {
    "langchain": ("langchain-openai==1.7.4",),
    "llama_index": ("llama-index-llms-openai-like==0.8.1", "llama-index-embeddings-openai-like==0.4.0"),
    "litellm": ("litellm==1.110.2",),
    "pydantic_ai": ("pydantic-ai-slim[openai]==2.68.0",),
    "instructor": ("instructor==1.17.0",),
    "llm": ("llm==0.36",),
}
TIMEOUT_S = 300


def commands(wanted: list[str]) -> Iterator[tuple[str, list[str | Path]]]:
    """Yields each client's name with its version, and the command that runs its script."""
    for name, requirement in VERSIONS.items():
        package = name.split("-")[0]
        if not wanted or package in wanted:
            python = environment(name, requirement)
            yield f"{package} {version_of(python, package)}", [python, HERE / f"{package}_tools_client.py"]
    for name, requirements in FRAMEWORKS.items():
        if not wanted or name in wanted:
            package, _, version = requirements[0].partition("==")
            python = environment(f"{name}-{version}", *requirements)
            yield f"{package} {version}", [python, HERE / f"{name}_client.py"]
    if (not wanted or "npm" in wanted) and (script := npm_script("npm_tools_clients.mjs")):
        yield npm_versions(), ["node", script]


def version_of(python: Path, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def npm_versions() -> str:
    packages = [ENVIRONMENTS / "npm" / "node_modules" / name / "package.json" for name in NPM_PACKAGES]
    described = [json.loads(package.read_text(encoding="utf-8")) for package in packages]
    return " and ".join(f"{package['name']} {package['version']}" for package in described) + " from npm"


def run(client: str, command: list[str | Path], base_url: str) -> bool:
    """Runs one client's script and prints how it went."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    started = time.perf_counter()
    options = {"env": variables, "capture_output": True, "text": True, "timeout": TIMEOUT_S}
    done = subprocess.run([*command, base_url, "tiny"], check=False, **options)
    took = f"{time.perf_counter() - started:.1f} s"
    if done.returncode:
        print(f"{client}: FAILED in {took}\n{done.stdout}{done.stderr}", flush=True)
    else:
        print(f"{client}: passed in {took}: {done.stdout.strip().splitlines()[-1]}", flush=True)
    return done.returncode == 0


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = write_scripted(Path(directory) / "tiny", SCRIPTS, TEMPLATE)
        with ServerHandle(checkpoint, ServerConfig(port=0)) as server:
            passed = [run(client, command, server.base_url) for client, command in commands(sys.argv[1:])]
    print(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed")
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
