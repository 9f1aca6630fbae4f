"""Lets Claude Code and Codex, as npm has them, finish a task on a server whose model says given texts.

The model's first answer calls a tool that writes a file, its second one ends the task. Needs `node` and `npm`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from llm.serving import ServerConfig, ServerHandle
from tests.scripted import write_scripted

DIRECTORY = Path(__file__).parents[2] / ".cache" / "compat" / "agents"
PACKAGES = ("@anthropic-ai/claude-code@2.1.197", "@openai/codex@0.171.0")
TIMEOUT_S = 120
NOTE = "note.txt"
TASK = "Write a note"
# A prompt of as many dots as lead to the next text: one text after each result of a tool.
TEMPLATE = """\
{#- <tool_call> -#}{%- if tools %}{% endif -%}
{%- set results = messages | selectattr('role', 'equalto', 'tool') | list | length -%}
{{- '.' * (results * 128 + 1) }}"""
CALL = '<tool_call>\n{{"name": "{}", "arguments": {{"{}": "echo done > note.txt"}}}}\n</tool_call>'
END = "The note is written."

CODEX_SETTINGS = """\
model = "tiny"
model_provider = "local"
web_search = "disabled"

[model_providers.local]
name = "local"
base_url = "{}"
wire_api = "responses"
"""


def installed() -> Path:
    """Returns the directory of the agents' commands, installed if they are missing."""
    done = DIRECTORY / ".done"
    if not done.exists():
        print(f"» installing {' and '.join(PACKAGES)}", flush=True)
        DIRECTORY.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(DIRECTORY), *PACKAGES]
        subprocess.run(npm, check=True)
        # Newer versions of npm don't run what a package wants to run once it is installed.
        claude = DIRECTORY / "node_modules" / "@anthropic-ai" / "claude-code"
        subprocess.run(["node", "install.cjs"], cwd=claude, check=True)
        done.touch()
    return DIRECTORY / "node_modules" / ".bin"


def run_claude(commands: Path, server: ServerHandle, work: Path, home: Path) -> str:
    """Returns what Claude Code prints at the end of the task."""
    command = [commands / "claude", "-p", TASK, "--model", "tiny", "--allowedTools", "Bash"]
    variables = {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": "any"}
    return output_of(command, work, home, variables | {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"})


def run_codex(commands: Path, server: ServerHandle, work: Path, home: Path) -> str:
    """Returns what Codex prints at the end of the task."""
    (home / ".codex").mkdir()
    (home / ".codex" / "config.toml").write_text(CODEX_SETTINGS.format(server.base_url))
    flags = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    return output_of([commands / "codex", "exec", *flags, TASK], work, home, {})


def output_of(command: list[str | Path], work: Path, home: Path, variables: dict[str, str]) -> str:
    """Returns what a command prints that sees neither the user's own settings nor this package."""
    inherited = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
    environment = inherited | {"HOME": str(home)} | variables
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": TIMEOUT_S}
    done = subprocess.run(command, check=False, cwd=work, env=environment, **options)
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def check(name: str, call: str, run: Callable[[Path, ServerHandle, Path, Path], str], commands: Path) -> None:
    """Runs one agent on a server of its own, and checks what it did."""
    with tempfile.TemporaryDirectory() as directory:
        work, home = Path(directory) / "work", Path(directory) / "home"
        work.mkdir()
        home.mkdir()
        checkpoint = write_scripted(Path(directory) / "tiny", [call, END], TEMPLATE)
        with ServerHandle(checkpoint, ServerConfig(port=0)) as server:
            said = run(commands, server, work, home)
        assert (work / NOTE).read_text() == "done\n", said
        assert said.strip() == END, said
    print(f"{name}: called a tool and finished its task", flush=True)


def main() -> None:
    if shutil.which("npm") is None:
        sys.exit("error: the agents come from npm, which is missing\nhint: install Node.js 20 or newer")
    commands = installed()
    check("Claude Code", CALL.format("Bash", "command"), run_claude, commands)
    check("Codex", CALL.format("exec_command", "cmd"), run_codex, commands)


if __name__ == "__main__":
    main()
