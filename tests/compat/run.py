"""Runs a client script in an environment for each client and major version, against one server on a real port."""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llm.serving import ServerConfig, ServerHandle
from tests.integration.server_client import write_checkpoint

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".cache" / "compat"
# The oldest version that is claimed, and the newest of each major one; each runs the script of its package.
VERSIONS = {
    "openai-oldest": "openai==1.60.0",
    "openai-1": "openai==1.*",
    "openai-2": "openai==2.*",
    "openai-3": "openai==3.*",
    "anthropic-oldest": "anthropic==0.45.0",
    "anthropic": "anthropic==2.*",
}
NPM_PACKAGES = {"openai": "6.49.0", "@anthropic-ai/sdk": "1.14.0"}


def pip_of(python: Path) -> list[str | Path]:
    """The pip of this environment, for another one: a copy of pip for each takes 4 seconds."""
    return [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]


def environment(name: str, *requirements: str) -> Path:
    """The Python of an environment that holds `requirements`, made if it is missing."""
    directory = ENVIRONMENTS / name
    python = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = directory / ".done"
    if not done.exists():
        print(f"» installing {' and '.join(requirements)}", flush=True)
        venv.create(directory, clear=True)
        subprocess.run([*pip_of(python), "install", "--quiet", *requirements], check=True)
        done.touch()
    return python


def npm_script(name: str = "npm_clients.mjs") -> Path | None:
    """The script for the clients from npm, beside them; installs them if they are missing. None without npm."""
    if shutil.which("npm") is None:
        print("» npm is missing: its clients are left out", flush=True)
        return None
    directory = ENVIRONMENTS / "npm"
    script = directory / name
    if not (directory / ".done").exists():
        print(f"» installing {' and '.join(NPM_PACKAGES)}", flush=True)
        directory.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(directory)]
        subprocess.run([*npm, *(f"{name}@{version}" for name, version in NPM_PACKAGES.items())], check=True)
        (directory / ".done").touch()
    # Node looks for packages beside the script.
    shutil.copyfile(HERE / name, script)
    return script


def main() -> None:
    with ThreadPoolExecutor(2) as pool:  # an installation keeps no two cores busy
        pythons = list(zip(VERSIONS, pool.map(environment, VERSIONS, VERSIONS.values()), strict=True))
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = write_checkpoint(Path(directory) / "tiny", "play")
        with ServerHandle(checkpoint, ServerConfig(port=0)) as server:
            for name, python in pythons:
                script = HERE / f"{name.split('-')[0]}_client.py"
                subprocess.run([python, script, server.base_url, "tiny"], env=variables, check=True)
                sys.stdout.flush()
            if script := npm_script():
                subprocess.run(["node", script, server.base_url, "tiny"], env=variables, check=True)


if __name__ == "__main__":
    main()
