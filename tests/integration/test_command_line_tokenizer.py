"""`llm tokenizer` as a user meets it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from llm.tokenization import BPETokenizer, SimpleCharacterTokenizer, load_tokenizer
from llm.tokenization.describe import bytes_per_token
from tests.integration.test_command_line import LLM_COMMAND, run

TEXT = "Speak, größer 吾輩\n<|endoftext|> 😀"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    BPETokenizer.train_from_iterator([TEXT * 20, "hear me speak " * 50], vocab_size=280).save(directory)
    return directory


def test_train_says_what_came_out(corpus_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    options = ("--special-token", "<|a|>", "--special-token", "<|b|>", "--pattern", r"\w+|\W+")
    done = run("tokenizer", "train", corpus_file, "--vocab-size", 400, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    tokenizer = load_tokenizer(out)
    assert tokenizer.special_tokens == {"<|a|>": 398, "<|b|>": 399}
    assert tokenizer.pattern == r"\w+|\W+"
    expected = bytes_per_token(tokenizer, corpus_file.read_text(encoding="utf-8"))
    assert expected > 1.3
    assert done.stdout.splitlines()[0] == f"{out}: 400 entries, {expected:.2f} bytes per token"
    assert f"llm tokenizer encode {out}" in done.stdout


def test_train_keeps_its_limits(corpus_file: Path, tmp_path: Path) -> None:
    limits = ("--min-frequency", 40, "--max-token-length", 3, "--threads", 2)
    done = run("tokenizer", "train", corpus_file, "--vocab-size", 2000, "--out", tmp_path, *limits)
    assert done.returncode == 0, done.stderr
    expected = BPETokenizer.train(corpus_file, vocab_size=2000, min_frequency=40, max_token_length=3)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.token_bytes() == expected.token_bytes()
    assert 256 < tokenizer.vocab_size < 2000
    assert max(len(token) for token in tokenizer.token_bytes()[:-1] if token) == 3


def test_a_tokenizer_is_replaced_only_when_asked_and_a_models_never(
    directory: Path, corpus_file: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    train = ("tokenizer", "train", corpus_file, "--vocab-size", 300, "--out")
    convert = ("tokenizer", "convert", directory)
    old, file, model, run_ = tmp_path / "old", tmp_path / "old.tiktoken", tmp_path / "model", tmp_path / "run"
    shutil.copytree(directory, old)
    file.write_text("mine")
    shutil.copytree(tiny_checkpoint, model)
    run_.mkdir()
    (run_ / "run.json").write_text("{}")
    for command, named in ((train, "--out"), (convert, "OUT")):
        for out, said in (
            (old, "which has a tokenizer.json"),
            (model, "with a config.json"),
            (run_, "with a run.json"),
        ):
            before = sorted((entry.name, entry.read_bytes()) for entry in out.iterdir())
            done = run(*command, out)
            assert done.returncode == 2
            assert done.stderr.startswith(f"error: `{named}` must ")
            assert said in done.stderr
            assert "hint: name another directory" in done.stderr
            assert sorted((entry.name, entry.read_bytes()) for entry in out.iterdir()) == before
        assert run(*command, model, "--overwrite").returncode == 2
        assert run(*command, old, "--overwrite").returncode == 0
    assert load_tokenizer(old).vocab_size == load_tokenizer(directory).vocab_size
    assert "which exists" in run(*convert, file).stderr
    assert file.read_text() == "mine"
    assert run(*convert, file, "--overwrite").returncode == 0
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink(missing_ok=True)
    assert run(*convert, model).returncode == 0


def test_encode_and_decode_are_each_others_inverse(directory: Path) -> None:
    ids = load_tokenizer(directory).encode(TEXT)
    by_argument = run("tokenizer", "encode", directory, TEXT)
    by_stdin = run("tokenizer", "encode", directory, stdin=TEXT)
    assert by_argument.stdout == by_stdin.stdout == " ".join(map(str, ids)) + "\n"
    as_json = run("tokenizer", "encode", directory, TEXT, "--json").stdout
    assert json.loads(as_json) == ids
    for given in (by_argument.stdout, as_json):
        assert run("tokenizer", "decode", directory, stdin=given).stdout == TEXT
    assert run("tokenizer", "decode", directory, *ids).stdout == TEXT


def test_encode_takes_a_file_and_special_tokens(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    tokenizer = load_tokenizer(directory)
    done = run(
        *("tokenizer", "encode", directory, "--file", tmp_path / "text.txt"),
        *("--allow-special", "--add-bos", "--add-eos", "--json"),
    )
    ids = json.loads(done.stdout)
    assert ids == tokenizer.encode(TEXT, allow_special=True, add_bos=True, add_eos=True)
    shown = run("tokenizer", "decode", directory, "--skip-special", *ids).stdout
    assert shown == TEXT.replace("<|endoftext|>", "")


def test_pieces_are_shown_with_their_borders(directory: Path) -> None:
    done = run("tokenizer", "encode", directory, " speak\n speak<|endoftext|>ë", "--pieces", "--allow-special")
    assert done.stdout == " speak|\\n| speak|<|endoftext|>|\\xc3|\\xab\n6 tokens, 28 bytes, 4.67 bytes per token\n"
    coloured = run("tokenizer", "encode", directory, " speak me", "--pieces", FORCE_COLOR="1")
    first, second = (part.partition("m")[0] for part in coloured.stdout.split("\x1b[")[1::2][:2])
    assert first != second


def test_decode_writes_text_as_ids_come(directory: Path) -> None:
    first, *rest = load_tokenizer(directory).encode("吾輩")
    command = [LLM_COMMAND, "tokenizer", "decode", str(directory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"115 112 {first}\n".encode())
    process.stdin.flush()
    assert process.stdout.read(2) == b"sp"  # while standard input is still open
    assert process.communicate(" ".join(map(str, rest)).encode(), timeout=60)[0] == "吾輩".encode()


def test_info_says_what_a_tokenizer_is(directory: Path, tmp_path: Path) -> None:
    shown = run("tokenizer", "info", directory).stdout
    facts = dict(line.split("  ", 1) for line in shown.splitlines())
    facts = {name: fact.strip() for name, fact in facts.items()}
    assert facts["tokenizer"] == "BPETokenizer"
    assert facts["entries"] == "280"
    assert facts["pattern"] == "gpt4 (built-in scanner)"
    assert facts["normaliser"] == "none"
    assert facts["special tokens"] == "<|endoftext|> 279"
    assert (facts["begins a text"], facts["ends a text"], facts["fills up"]) == (
        "<|endoftext|>",
        "<|endoftext|>",
        "none",
    )
    assert "' speak'" in facts["longest tokens"]
    assert facts["chat template"] == "no"
    custom = BPETokenizer.train_from_iterator(["ab"], vocab_size=258, pattern=r"\w|\W+")
    document = json.loads(custom.to_json()) | {"normalizer": {"type": "NFC"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    shown = run("tokenizer", "info", tmp_path / "tokenizer.json").stdout
    assert r"custom (general regex path): \w|\W+" in shown
    assert re.search(r"^normaliser +NFC$", shown, re.MULTILINE)
    SimpleCharacterTokenizer.train("abc").save(tmp_path / "characters")
    shown = run("tokenizer", "info", tmp_path / "characters").stdout
    assert "SimpleCharacterTokenizer" in shown
    assert "pattern" not in shown


def test_convert_goes_to_any_format_and_back(directory: Path, tmp_path: Path) -> None:
    ids = load_tokenizer(directory).encode(TEXT, allow_special=True)
    again = ("--pattern", "gpt4", "--special-token", "<|endoftext|>=279")
    targets = [
        ("other", (), "directory", ()),
        ("mine.json", (), "tokenizer.json", ()),
        ("mine.tiktoken", (), "tiktoken", again),
        ("other.json", ("--to", "directory"), "directory", ()),
    ]
    for name, to, format, options in targets:
        out = tmp_path / name
        done = run("tokenizer", "convert", directory, out, *to)
        assert (done.returncode, done.stdout) == (0, f"{out}: {format}, 280 entries\n"), done.stderr
        done = run("tokenizer", "encode", out, TEXT, "--allow-special", "--json", *options)
        assert done.returncode == 0, (name, done.stderr)
        assert json.loads(done.stdout) == ids, name


def test_bench_shows_a_table(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 200, encoding="utf-8")
    done = run("tokenizer", "bench", directory, tmp_path / "text.txt", "--seconds", 0.01, "--threads", 1)
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["MB/s", "tiktoken", "times", "as", "fast"]
    assert [row[:15].strip() for row in rows][:2] == ["encode to list", "encode to array"]
    assert len(rows) == 6
    for row in rows:
        ours, theirs, ratio = map(float, row.split()[-3:])
        assert ours > 0
        assert ratio == pytest.approx(ours / theirs, rel=0.1, abs=0.1)
    SimpleCharacterTokenizer.train(TEXT).save(tmp_path / "characters")
    done = run("tokenizer", "bench", tmp_path / "characters", tmp_path / "text.txt", "--seconds", 0.01)
    assert done.stdout.split()[0] == "MB/s"
    assert "tiktoken" not in done.stdout


def test_bad_input_is_one_message_and_exit_code_2(directory: Path, tmp_path: Path, corpus_file: Path) -> None:
    latin, empty = tmp_path / "latin.txt", tmp_path / "empty.txt"
    latin.write_bytes(b"gr\xf6\xdfer")
    empty.write_bytes(b"")
    nowhere = tmp_path / "nowhere"
    train = ("train", corpus_file, "--vocab-size", "300", "--out", tmp_path / "out")
    cases = [
        (("encode", nowhere, "a"), ["nowhere", "hint:"]),
        (("encode", directory, "a", "--file", latin), ["from an argument or `--file`, got both"]),
        (("encode", directory, "--file", latin), ["must be UTF-8, got byte 0xf6 at offset 2"]),
        (("encode", directory, "--file", nowhere), ["nowhere", "can't be read"]),
        (("decode", directory, "1", "x2"), ["token ids must be whole numbers, got 'x2'"]),
        (("decode", directory, "1", "280"), ["(0 to 279), got 280"]),
        (("convert", directory, tmp_path / "out", "--to", "xml"), ["a format must be one of ['directory', ", "'xml'"]),
        (("info", directory, "--special-token", "<|a|>"), ["given as TOKEN=ID, got '<|a|>'", "hint:"]),
        (("bench", directory, empty), ["`text` must not be empty"]),
        (("info", tmp_path), ["must contain tokenizer.json", "got none", "hint:"]),
        ((*train, "--pattern", "gpt5"), ["pattern", "gpt5"]),
        ((*train, "--pattern", "(a"), ["(a"]),
        ((*train, "--threads", "2000"), ["num_threads", "2000"]),
        ((*train, "--special-token", "a"), ["special token", '"a"']),
        ((*train, "--special-token", "<a>", "--special-token", "<a>"), ["special token", "<a>"]),
        (("train", nowhere, "--vocab-size", "300", "--out", tmp_path / "out"), ["nowhere: no such file"]),
    ]
    for arguments, parts in cases:
        done = run("tokenizer", *arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert done.stderr.startswith("error: "), (arguments, done.stderr)
        assert "Traceback" not in done.stderr
        for part in parts:
            assert part in done.stderr, (arguments, done.stderr)
    assert not (tmp_path / "out").exists()
    done = subprocess.run(
        [LLM_COMMAND, "tokenizer", "encode", str(directory)], input=b"\xff", capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"error: standard input must be UTF-8, got byte 0xff at offset 0\n"
