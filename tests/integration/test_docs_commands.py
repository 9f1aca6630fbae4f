"""The shell blocks of all pages name commands, options, modules, files and routes that exist."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
from torch.distributed.run import get_args_parser

from llm.api.training import tuning_overrides
from llm.cli.arguments import sorted_arguments
from llm.cli.main import app
from llm.cli.train import OPTIONS
from llm.serving.openapi.operations import OPERATIONS
from llm.serving.parsing import UnknownKeys, parse_request
from llm.serving.routes import ROUTES, route_of
from llm.settings.merge import Override, load_run_config
from llm.settings.replicas import replica_config
from llm.settings.server import load_server_config
from tests.integration.pages import PAGES, ROOT, Command, blocks, commands, commands_of, name_of

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
# make's own, and those that pip reads from the environment.
VARIABLES = {*re.findall(r"\$\(([A-Z_]+)\)", MAKEFILE), "TORCH", "PIP_FIND_LINKS", "PIP_CONSTRAINT"}
# Programs of others, of which only the files that they name are checked, and `curl`, which has a test of its own.
_FOREIGN = """cargo cd claude curl docker echo git head helm kill kubectl lm_eval mkdir mkdocs openssl pre-commit
printf sbatch sha256sum sky source squeue tail wait"""
OURS = ("llm", "make", "python", "torchrun", "serve")
# Verbs whose settings are of rows of this kind.
TUNED = {"sft": "chat", "dpo": "preference", "reward": "preference", "grpo": "prompt"}
# Folders of this repository whose files commands name.
_FILE = re.compile(r"(?:benches|deploy|docker|docs|examples|requirements|tests|tools)/[\w./-]+")


def parse(words: list[str], variables: dict[str, str]) -> None:
    """Finds the verb of `llm` and reads its options and settings."""
    command = typer.main.get_command(app)
    verb = words[0] if words else ""
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no verb {words[0]}; there are {sorted(command.commands)}"
        command, words = command.commands[words[0]], words[1:]
    if "--help" in words:
        return
    given = command.make_context(command.name, list(words)).params
    if verb == "train" or verb in TUNED:
        load_run_config(overrides=settings_of(verb, given), environ=variables)
    if verb == "serve":
        load_server_config(None, {}, variables)
    assert set(variables) <= {"LLM_API_KEY"} or verb in {"train", "serve", *TUNED}


def settings_of(verb: str, given: dict[str, Any]) -> list[Override]:
    """The settings that the words and options of a training verb stand for."""
    options = [(dotted, given.get(dotted.partition(".")[2])) for dotted in OPTIONS]
    settings = [*sorted_arguments(given["arguments"] or []).overrides, *(one for one in options if one[1] is not None)]
    if verb in TUNED and not given["resume"]:
        return tuning_overrides(TUNED[verb], "runs/base", given["data"], None, settings, reward=given.get("reward"))
    return settings


@pytest.mark.parametrize("command", commands_of("llm"))
def test_commands_and_options_exist(command: Command) -> None:
    parse(command.arguments, command.variables)


@pytest.mark.parametrize("command", commands_of("make"))
def test_make_targets_and_variables_exist(command: Command) -> None:
    check_make(command.arguments)


def check_make(words: list[str]) -> None:
    assert {word for word in words if "=" not in word} - TARGETS == set()
    assert {word.partition("=")[0] for word in words if "=" in word} - VARIABLES == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_named_in_sentences_exist(page: Path) -> None:
    for words in re.findall(r"`make ([^`]+)`", page.read_text(encoding="utf-8")):
        check_make(re.sub(r'"[^"]*"', "", words).split())


def test_the_page_on_development_names_every_make_target() -> None:
    page = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^([a-z-]+):[^\n]*## ", MAKEFILE, re.MULTILINE))
    assert described - set(re.findall(r"\bmake ([a-z-]+)", page)) == set()


@pytest.mark.parametrize("command", commands_of("torchrun"))
def test_torchrun_takes_its_options_and_llm_the_rest(command: Command) -> None:
    options = get_args_parser().parse_args(command.arguments)
    assert (options.module, options.training_script) == (True, "llm")
    parse(options.training_script_args, command.variables)


@pytest.mark.parametrize("command", commands_of("sbatch"))
def test_the_script_for_slurm_gets_a_run_and_arguments_of_llm(command: Command) -> None:
    script = command.arguments.index("examples/distributed/slurm.sh")
    run, *arguments = command.arguments[script + 1 :]
    parse(["train", "--out", run, *arguments], {})
    text = (ROOT / command.arguments[script]).read_text(encoding="utf-8")
    assert {name for name in command.variables if f"${{{name}" not in text} == set()


@pytest.mark.parametrize("command", commands_of("python"))
def test_modules_that_python_runs_exist(command: Command) -> None:
    if command.arguments[0] == "-c":
        compile(command.arguments[1], "-c", "exec")
    elif command.arguments[0] == "-m":
        assert importlib.util.find_spec(command.arguments[1])
    else:
        assert (ROOT / command.arguments[0]).is_file()


@pytest.mark.parametrize("command", commands_of("serve"))
def test_ray_serve_gets_settings_of_replicas(command: Command) -> None:
    verb, application, *settings = command.arguments
    assert (verb, application) == ("run", "llm.serving.ray:application")
    assert "def application(" in (ROOT / "python/llm/serving/ray.py").read_text(encoding="utf-8")
    replica_config(dict(setting.split("=", 1) for setting in settings), environ={})


CURLS = [
    pytest.param(page, command, id=f"{name_of(page)}: {' '.join(command.words)}")
    for page in PAGES
    for command in commands(page)
    if command.program == "curl"
]


@pytest.mark.parametrize(("page", "command"), CURLS)
def test_curl_asks_routes_of_the_server_and_sends_what_they_take(page: Path, command: Command) -> None:
    [url] = [word for word in command.arguments if word.startswith("http")]
    route, _ = route_of(urlsplit(url).path)
    method = "POST" if "-d" in command.arguments else "GET"
    assert route is not None
    assert method in ROUTES[route]
    if method == "POST":
        body = command.arguments[command.arguments.index("-d") + 1]
        if body.startswith("@"):  # the page shows the file
            body = next(block for _, block in blocks(page, "json") if set(json.loads(block)) >= {"model", "messages"})
        parse_request(body.encode(), OPERATIONS[f"{method} {route}"].request, UnknownKeys(strict=True))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_commands_name_exist(page: Path) -> None:
    words = [word for command in commands(page) for word in command.words]
    named = [found[0] for word in words if (found := _FILE.fullmatch(word))]
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_known(page: Path) -> None:
    assert {command.program for command in commands(page)} - {*OURS, *_FOREIGN.split()} == set()
