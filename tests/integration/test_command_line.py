"""The command `llm` as a user meets it: help, work, and every bad input as one message with exit code 2."""

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import llm
from llm.cli.main import main
from llm.tokenization import ChatTemplate
from tests.integration.server_client import write_checkpoint

LLM_COMMAND = str(Path(sys.executable).parent / "llm")
VERBS = [
    *((verb,) for verb in ("train", "generate", "chat", "serve", "export", "info", "demo")),
    *(("data", verb) for verb in ("info", "preview", "tokenize")),
    *(("tokenizer", verb) for verb in ("train", "encode", "decode", "info", "convert", "bench")),
]


def run(*arguments: object, cwd: Path | None = None, stdin: str = "", **environment: str):
    return subprocess.run(
        [LLM_COMMAND, *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        env=os.environ | {"COLUMNS": "100", "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("verb", [(), ("tokenizer",), *VERBS], ids=" ".join)
def test_help_fits_a_screen_and_has_an_example(verb: tuple[str, ...]) -> None:
    done = run(*verb, "--help")
    assert done.returncode == 0
    # An option for each setting takes more than one screen.
    limits = {"generate": 75, "chat": 75, "serve": 130, "train": 60}
    assert len(done.stdout.splitlines()) <= limits.get("".join(verb), 40)
    if verb in VERBS:
        assert f"Example:  llm {' '.join(verb)}" in done.stdout


def test_version_and_all_settings_can_be_printed() -> None:
    assert run("--version").stdout == f"llm-oxide {llm.__version__}\n"
    heading, *settings = run("train", "--settings").stdout.splitlines()
    assert heading.split() == ["setting", "type", "default", "meaning"]
    assert ["generation.top_p", "float", ">", "0"] in [line.split()[:4] for line in settings]
    assert ["lora.use_dora", "bool", "false"] in [line.split()[:3] for line in settings]
    assert all(re.fullmatch(r"[\w.]+ {2,}\S.*  \S+ .*", line) for line in settings)


@pytest.mark.parametrize("command", ["llm-train", "llm-serve"])
def test_short_commands_are_the_verbs(command: str) -> None:
    path = Path(sys.executable).parent / command
    done = subprocess.run([path, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert f"Example:  llm {command.removeprefix('llm-')}" in done.stdout


SMALL = ("model.hidden_size=32", "model.intermediate_size=48", "model.num_hidden_layers=1", "tokenizer.vocab_size=300")


def test_from_text_to_answers(corpus_file: Path, tmp_path: Path) -> None:
    done = run("tokenizer", "train", corpus_file, "--vocab-size", "320", "--out", tmp_path / "tokenizer")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'tokenizer'}: 320 entries, ")
    settings = [*SMALL, "tokenizer.chat_template=play", "data.context_length=64"]
    done = run(
        *("train", *settings, "--data", corpus_file, "--out", "run", "--tokenizer", tmp_path / "tokenizer"),
        *("--max-steps", "4", "--batch-size", "2", "--num-samples", "6"),
        cwd=tmp_path,
        LLM_TRAINING__LOG_EVERY="2",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("run/checkpoints/step_00000004\n")
    steps = [line.split("  ")[0] for line in done.stderr.splitlines() if line.startswith("step ")]
    assert [step for step in steps if "/" in step] == ["step 2/4", "step 4/4"]
    answers = [run("generate", "run", "ROMEO:", "--max-tokens", "12", "--seed", "1", cwd=tmp_path) for _ in range(2)]
    assert answers[0].returncode == 0
    assert len(answers[0].stdout) > 4
    assert answers[0].stdout == answers[1].stdout
    facts = " ".join(run("info", "run", cwd=tmp_path).stdout.split())  # columns are as wide as they need be
    for part in ("step_00000004", "BPETokenizer, 320 entries", "256 tokens", "chat template yes"):
        assert part in facts
    chat = run("chat", "run", "--max-tokens", "8", cwd=tmp_path, stdin="What news?\n\n")
    assert chat.returncode == 0
    assert chat.stdout.startswith("> ")


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_generate_reads_its_prompt_from_standard_input(tiny_checkpoint: Path, arguments: tuple[str, ...]) -> None:
    options = ("--max-tokens", "6", "--seed", "1")
    given = run("generate", tiny_checkpoint, "ROMEO:", *options)
    assert run("generate", tiny_checkpoint, *arguments, *options, stdin="ROMEO:\n").stdout == given.stdout != ""


class Terminal:
    """A program that runs on a terminal of its own."""

    def __init__(self, *command: object) -> None:
        self._master, slave = pty.openpty()
        descriptors = {"stdin": slave, "stdout": slave, "stderr": slave}
        self.process = subprocess.Popen(list(map(str, command)), **descriptors)
        os.close(slave)

    def read_until(self, *parts: bytes) -> bytes:
        """What the program writes until each part has come, in order."""
        text, place = b"", 0
        for part in parts:
            while (found := text.find(part, place)) < 0:
                text += os.read(self._master, 4096)
            place = found + len(part)
        return text

    def write(self, text: bytes) -> None:
        os.write(self._master, text)


def test_chat_on_a_terminal_greets_stops_an_answer_and_remembers_lines(tmp_path: Path) -> None:
    template = ChatTemplate("{{ messages[-1].content }}:", stop=("<never>",))
    checkpoint = write_checkpoint(tmp_path / "tiny", template)
    terminal = Terminal(LLM_COMMAND, "chat", checkpoint, "--ignore-eos", "--max-tokens", 8000)
    terminal.read_until(b"tiny, context of 8,192 tokens. Ctrl-C stops an answer", b"> ")
    terminal.write(b"Hi\n")
    terminal.read_until(b"Hi\r\n", b"e", b"t")  # the answer has begun
    terminal.process.send_signal(signal.SIGINT)
    terminal.read_until(b"\r\n> ")
    terminal.write(b"\x1b[A")  # the arrow that brings the last line back
    terminal.read_until(b"Hi")
    terminal.write(b"\x15\x04")  # clears the line, then ends the input
    assert terminal.process.wait(60) == 0


def test_ctrl_c_saves_and_says_how_to_go_on(corpus_file: Path, tmp_path: Path) -> None:
    settings = [*SMALL, "training.log_every=1", "training.max_steps=100000"]
    command = [LLM_COMMAND, "train", *settings, "--data", str(corpus_file), "--out", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not process.stderr.readline().startswith("step "):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in rest
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step_"))
    assert rest.endswith(f"stopped, saved at step {step}; resume with:  llm train --resume run\n")
    done = run("train", "--out", "run", "--resume", "--max-steps", step + 1, cwd=tmp_path)
    assert done.stdout.startswith(f"run/checkpoints/step_{step + 1:08d}\n")


def test_the_regression_task_runs_on_made_up_samples(tmp_path: Path) -> None:
    done = run(
        *("train", "--task", "regression", "data.kind=synthetic", "--num-samples", "64", "--epochs", "2"),
        *("--out", tmp_path / "run"),
    )
    assert done.returncode == 0, done.stderr
    assert "RegressionModel" in run("info", tmp_path / "run").stdout


def run_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int | str | None, str]:
    """Exit status and standard error of a command in this process, which has PyTorch already."""
    monkeypatch.setattr(sys, "argv", ["llm", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
        main()
    return ended.value.code, capfd.readouterr().err


def test_bad_input_is_one_message_and_exit_code_2(
    corpus_file: Path,
    tmp_path: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    out = tmp_path / "out"
    torn = tmp_path / "torn"
    torn.mkdir()
    for file in tiny_checkpoint.iterdir():
        (torn / file.name).write_bytes(file.read_bytes()[: 500 if file.name == "model.safetensors" else None])
    train = ("train", "--data", corpus_file, "--out", out)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = [
            (("train", "--data", tmp_path / "none.txt", "--out", out), ["none.txt", "no such file"]),
            (("train", "--data", empty, "--out", out), ["the corpus is empty"]),
            ((*train, "tokenizer.vocab_size=200"), ["vocab_size", "200", "257"]),
            (("tokenizer", "train", corpus_file, "--vocab-size", "9", "--out", out), ["vocab_size", "257", "9"]),
            (("train", "--resume", tmp_path / "none"), ["no run to resume in"]),
            ((*train, "training.epoch=2"), ["unknown setting `training.epoch`", "did you mean `epochs`"]),
            ((*train, "data.context_length=999"), ["`data.context_length`", "(256), got 999", "hint:"]),
            ((*train, "--resume"), ["no run to resume", "hint:"]),
            (("train", "--data", corpus_file), ["`--out` is missing"]),
            (("generate", torn, "Hi"), ["model.safetensors is truncated", "500 bytes", "hint:"]),
            (("generate", tmp_path / "nowhere", "Hi"), ["no checkpoint at"]),
            (("generate", tiny_checkpoint, "Hi", "--max-tokens", "9999"), ["the context is 128 tokens", "9999"]),
            (("generate", tiny_checkpoint, "Hi", "--top-p", "2"), ["`--top-p` must be", "got 2.0"]),
            (("generate", tiny_checkpoint, "Hi", "--dtype", "int3"), ["`--dtype` must be one of", "'int3'"]),
            (("serve", tmp_path / "none.gguf"), ["no checkpoint at", "hint:"]),
            (("serve", tiny_checkpoint, "--dtype", "int3"), ["`--dtype` must be one of", "'int3'"]),
            (
                ("serve", tiny_checkpoint, "--max-model-len", "999"),
                ["`--max-model-len` must be at most the model's 128"],
            ),
            (("serve", tiny_checkpoint, "--draft-model", "x", "--ngram-drafts"), ["got both", "hint:"]),
            (("serve", tiny_checkpoint, "--num-draft-tokens", "2"), ["needs `--draft-model` or `--ngram-drafts`"]),
            (("serve", tiny_checkpoint, "--port", port), [f"port {port} on 127.0.0.1 is already in use", "hint:"]),
        ]
        for idx, (arguments, parts) in enumerate(cases):
            if idx == 0:
                done = run(*arguments)
                code, errors = done.returncode, done.stderr
            else:
                code, errors = run_here(monkeypatch, capfd, *arguments)
            assert code == 2, (arguments, errors)
            assert errors.startswith("error: "), (arguments, errors)
            assert "Traceback" not in errors
            for part in parts:
                assert part in errors, (arguments, errors)
    assert not (out / "run.json").exists()
    assert not (out / "checkpoints").exists()
