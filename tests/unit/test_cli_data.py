"""`llm data`: counts, a sample in colours, shards ahead of a run."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm.cli.main import app
from llm.errors import ConfigError, InvalidArgumentError, LLMError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    lines = [json.dumps({"body": "To be, or not to be.\n" * (1 + number % 7)}) for number in range(30)]
    (directory / "a.jsonl").write_text("\n".join(lines))
    tiny_tokenizer.save(directory / "tokenizer")
    return directory


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["data", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_info_counts_documents_tokens_and_lengths(corpus: Path) -> None:
    said = run("info", corpus / "a.jsonl", "--field", "body", "--tokenizer", corpus / "tokenizer", "--packing")
    assert "text: 1 file, 30 documents, 2,415 bytes" in said
    assert "bytes a token" in said
    assert "samples of 256 tokens, " in said
    assert "documents (one counts twice, cut where the held-out text begins)" in said
    rows = [line for line in said.splitlines() if "–" in line]
    assert sum(int(row.split()[3]) for row in rows) == 31


def test_texts_and_settings_may_be_given_as_for_training(corpus: Path) -> None:
    said = run("info", "--data", corpus / "a.jsonl", "data.field=body")
    assert "text: 1 file, 30 documents, 2,415 bytes\nnext:  add --tokenizer DIR" in said
    said = run(
        "info", corpus / "a.jsonl", "data.field=body", "data.context_length=32", "--tokenizer", corpus / "tokenizer"
    )
    assert " samples of 32 tokens" in said


def test_what_is_missing_is_said_with_the_way_to_get_it(corpus: Path) -> None:
    for arguments, words in (
        (
            ("preview", corpus / "a.jsonl", "--field", "body"),
            r"`--tokenizer` is missing\nhint: .* `llm tokenizer train",
        ),
        (("tokenize", corpus / "a.jsonl", "--field", "body"), r"`--cache` is missing\nhint: name the directory"),
        (("info",), "no training text was named"),
    ):
        with pytest.raises(LLMError, match=words):
            run(*arguments)


def test_preview_shows_a_sample_and_the_borders_of_documents(corpus: Path) -> None:
    said = run(
        "preview", corpus / "a.jsonl", "--field", "body", "--tokenizer", corpus / "tokenizer", "--packing",
        "--context-length", 64,
    )  # fmt: skip
    assert said.startswith("sample 0, of 0 to ")
    assert "learnt ──" in said
    assert "To be, or not to be." in said
    with pytest.raises(InvalidArgumentError, match="`--sample` must be below the number of samples"):
        run("preview", corpus / "a.jsonl", "--field", "body", "--tokenizer", corpus / "tokenizer", "--sample", 999)


def test_tokenize_makes_the_shards_that_runs_find(corpus: Path, tmp_path: Path) -> None:
    arguments = (corpus / "a.jsonl", "--field", "body", "--tokenizer", corpus / "tokenizer", "--cache", tmp_path)
    said = run("tokenize", *arguments)
    assert f"next:  llm train {corpus / 'a.jsonl'} data.field=body --tokenizer {corpus / 'tokenizer'}" in said
    written = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.bin")}
    run("tokenize", *arguments)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.bin")} == written
    assert len(written) == 2
    file = corpus / "a.jsonl"
    for cache, got in ((file, f"the file {file}"), (file / "b", f"{file / 'b'} in the file {file}")):
        with pytest.raises(
            ConfigError, match=re.escape(f"`--cache` must be a directory, got {got}\nhint: name another")
        ):
            run("tokenize", file, "--tokenizer", corpus / "tokenizer", "--cache", cache)
