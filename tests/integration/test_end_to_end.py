"""The main job: corpus → tokenizer → train → kill -9 → resume → serve → openai client."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest

from llm.checkpoint import Run
from llm.serving import ServerHandle
from llm.training.metrics import without_machine

LLM_COMMAND = str(Path(sys.executable).parent / "llm")
MAX_STEPS = 40
SETTINGS = (
    *("model.hidden_size=48", "model.intermediate_size=64", "model.num_hidden_layers=2", "model.num_attention_heads=4"),
    *("model.max_position_embeddings=128", "tokenizer.vocab_size=320", "tokenizer.chat_template=play"),
    *("training.checkpoint_every=4", "training.validate_every=20", "training.batch_size=4", "training.log_every=1"),
    f"training.max_steps={MAX_STEPS}",
)
MESSAGE = "What news, my lord?"


def start(*arguments: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [LLM_COMMAND, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output.decode()


def say(*arguments: str) -> str:
    return finish(start(*arguments))


@functools.cache
def answer_of(command: str, run: Path, words: tuple[str, ...], seed: int) -> str:
    """What a command answers; whole and streamed answers of the server are compared with the same one."""
    return say(command, str(run), *words, "--max-tokens", "32", "--seed", str(seed))


def kill_once_past(run: Run, process: subprocess.Popen[bytes], step: int) -> None:
    """`kill -9` as soon as a checkpoint of `step` or later is on disk."""
    deadline = time.monotonic() + 120
    while (newest := run.newest()) is None or int(newest.path.name[5:]) < step:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)  # the run needs the core
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> tuple[Run, Run]:
    """An uninterrupted run, and one that was killed twice and resumed."""
    directory = tmp_path_factory.mktemp("runs")
    whole, killed = Run(directory / "whole"), Run(directory / "killed")
    train = ("train", *SETTINGS, "--data", str(corpus_file), "--out")
    say(*train, str(whole.path))
    kill_once_past(killed, start(*train, str(killed.path)), 4)
    kill_once_past(killed, start("train", "--out", str(killed.path), "--resume"), 20)
    say("train", "--out", str(killed.path), "--resume")
    return whole, killed


def test_a_killed_and_resumed_run_equals_the_uninterrupted_one_byte_for_byte(runs) -> None:
    whole, killed = runs
    assert whole.newest().path.name == killed.newest().path.name == f"step_{MAX_STEPS:08d}"
    files = sorted(path.relative_to(whole.newest().path) for path in whole.newest().path.rglob("*") if path.is_file())
    assert Path("model.safetensors") in files
    assert Path("training_state/optimizer.safetensors") in files
    for file in files:
        assert (whole.newest().path / file).read_bytes() == (killed.newest().path / file).read_bytes(), file
    logs = [[without_machine(line) for line in run.read_log()] for run in runs]
    assert logs[0] == logs[1]
    losses = [line["loss"] for line in logs[0] if "loss" in line]
    assert len(losses) == MAX_STEPS
    assert losses[-1] < losses[0] - 0.3


@pytest.fixture(scope="module")
def server(runs):
    with ServerHandle(runs[1].path) as handle:
        yield handle


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0, timeout=60)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_completions_equal_llm_generate(runs, client: openai.OpenAI, seed: int, stream: bool) -> None:
    model_name = client.models.list().data[0].id
    answer = client.completions.create(model=model_name, prompt="ROMEO:\n", max_tokens=32, seed=seed, stream=stream)
    text = "".join(chunk.choices[0].text for chunk in answer) if stream else answer.choices[0].text
    assert answer_of("generate", runs[1].path, ("ROMEO:\n",), seed) == text + "\n"
    assert len(text) > 8


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_chat_completions_equal_llm_chat(runs, client: openai.OpenAI, seed: int, stream: bool) -> None:
    answer = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": MESSAGE}],
        max_completion_tokens=32,
        seed=seed,
        stream=stream,
    )
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
    else:
        text = answer.choices[0].message.content
        assert answer.usage.completion_tokens > 0
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer_of("chat", runs[1].path, ("--message", MESSAGE), seed) == text + "\n"


def test_run_directory_is_what_the_documentation_says(runs) -> None:
    run = runs[0].path
    assert (run / "latest").read_text().strip() == f"checkpoints/step_{MAX_STEPS:08d}"
    assert json.loads((run / "run.json").read_text())["config"]["training"]["max_steps"] == MAX_STEPS
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "COMPLETE"):
        assert (runs[0].newest().path / name).is_file()
