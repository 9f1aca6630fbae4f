"""A run that learns from rewards is killed while it draws answers, and goes on to the byte."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm.checkpoint import Run
from tests.unit.chat_rows import write_rows
from tests.unit.training_samples import losses_of, tensors_of

LIMIT_S = 120
# Waits before it rewards the second group of answers after the run's first checkpoint, as long as `waits` is there.
REWARD = """
import pathlib, threading
folder = pathlib.Path(__file__).parent
calls = []
def vowels(completions):
    if (folder / "waits").exists() and (folder / "cut" / "latest").exists() and len(completions) == 4:
        calls.append(len(completions))
        if len(calls) == 2:
            (folder / "reached").touch()
            threading.Event().wait()
    return [sum(map(text.count, "aeiou")) / 9 for text in completions]
"""
SETTINGS = ("max_steps=8", "checkpoint_every=4", "validate_every=4", "passes=2", "batch_size=4", "group_size=4")
SETTINGS += ("max_answer_tokens=12", "learning_rate=1e-3", "kl_coefficient=0.05", "redraws=1", "log_every=1")
SETTINGS += ("precision=float32", "device=cpu", "validation_fraction=0.2")


def started(*words: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "llm", "grpo", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finished(process: "subprocess.Popen[str]") -> None:
    try:
        said = process.communicate(timeout=LIMIT_S)[1]
    finally:
        process.kill()
    assert process.returncode == 0, said[-2000:]


def killed_once_there(process: "subprocess.Popen[str]", file: Path) -> None:
    end = time.monotonic() + LIMIT_S
    while not file.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.kill()
    said = process.communicate(timeout=LIMIT_S)[1]
    assert process.returncode == -signal.SIGKILL, said[-2000:]
    assert file.exists(), said[-2000:]


def moments_of(run: Run) -> dict[str, bytes]:
    folder = run.newest().path
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.safetensors")}


@pytest.mark.long
def test_a_run_killed_while_it_draws_answers_goes_on_to_the_byte(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Who are you, {name}?"} for name in "ABCDEFGHIJ"])
    (tmp_path / "mine.py").write_text(REWARD)
    words = [str(tiny_checkpoint), "--data", str(tmp_path / "prompts.jsonl"), *SETTINGS]
    words += ["--reward", f"{tmp_path / 'mine.py'}:vowels"]
    straight, cut = Run(tmp_path / "straight"), Run(tmp_path / "cut")
    (tmp_path / "waits").touch()
    killed_once_there(started(*words, "--out", str(cut.path)), tmp_path / "reached")
    assert [one.path.name for one in cut.checkpoints()] == ["step_00000004"]
    (tmp_path / "waits").unlink()
    runs = [started("--resume", "--out", str(cut.path)), started(*words, "--out", str(straight.path))]
    for process in runs:
        finished(process)
    assert moments_of(cut) == moments_of(straight)
    assert len(moments_of(cut)) > 1
    assert losses_of(cut.path) == losses_of(straight.path)
    before, after = (tensors_of(cut.checkpoint(step)) for step in (4, 8))
    assert any(not tensor.equal(after[name]) for name, tensor in before.items())
