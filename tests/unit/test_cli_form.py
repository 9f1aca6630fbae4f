"""`--json-schema`, `--regex` and `--grammar` of `llm generate` and `llm chat`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm.cli.main import app
from llm.errors import LLMError

SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("forms")
    (directory / "schema.json").write_text(json.dumps(SCHEMA | {"additionalProperties": False}), encoding="utf-8")
    (directory / "refused.json").write_text('{"not": {}}', encoding="utf-8")
    (directory / "torn.json").write_text('{"type"', encoding="utf-8")
    (directory / "latin.json").write_bytes(b'{"title": "\xe9"}')
    (directory / "greeting.lark").write_text('start: "good " ("day" | "night")', encoding="utf-8")
    return directory


def ran(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("verb", [("generate", "PATH", "So"), ("chat", "PATH", "--message", "So")])
def test_answers_have_the_form(tiny_checkpoint: Path, files: Path, verb: tuple[str, ...]) -> None:
    command = [tiny_checkpoint if word == "PATH" else word for word in verb]
    answer = ran(*command, "--seed", "1", "--max-tokens", "60", "--json-schema", files / "schema.json")
    assert json.loads(answer)["ok"] in (True, False)
    assert ran(*command, "--seed", "1", "--regex", "(19|20)x{2}").strip() in ("19xx", "20xx")
    assert ran(*command, "--seed", "1", "--grammar", files / "greeting.lark").strip() in ("good day", "good night")


def test_a_shorter_context_is_one_of_the_options(tiny_checkpoint: Path) -> None:
    with pytest.raises(LLMError, match="the context is 16 tokens"):
        ran("generate", tiny_checkpoint, "So", "--max-tokens", "60", "--max-model-len", "16")
    assert "--max-model-len" in ran("chat", "--help")
    assert "--max-model-len" in ran("eval", "--help")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json-schema", "none.json"], "`--json-schema` must be a file, got "),
        (["--json-schema", "latin.json"], "with an invalid byte at 11"),
        (["--json-schema", "torn.json"], "`--json-schema` must be a JSON schema: EOF"),
        (["--json-schema", "refused.json"], "`--json-schema` has the keyword `not` at #, which is not supported"),
        (["--grammar", "schema.json"], "`--grammar` is invalid: "),
        (["--regex", "("], "`--regex` is invalid: "),
        (
            ["--regex", "a", "--grammar", "greeting.lark"],
            "an answer has one form, got `--regex` and `--grammar`\nhint: ",
        ),
    ],
)
def test_a_form_that_cannot_be_kept_is_named_by_its_option(
    tiny_checkpoint: Path, files: Path, options: list[str], message: str
) -> None:
    given = [str(files / option) if "." in option else option for option in options]
    with pytest.raises(LLMError) as caught:
        ran("generate", tiny_checkpoint, "So", *given)
    assert message in str(caught.value)
