"""The examples run as their first lines say; the client's example is run by the server's tests."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llm import LLM, SamplingParams
from llm.checkpoint import Run
from llm.tokenization import load_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name: str, *arguments: object) -> str:
    """What an example prints."""
    command = [sys.executable, "-X", "utf8", str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_inference_demo_shows_the_four_ways_to_ask(tiny_checkpoint: Path) -> None:
    shown = run_example("inference_demo.py", tiny_checkpoint)
    for part in ("— one prompt", "— a batch", "— a stream", "— a chat", " tokens]"):
        assert part in shown


def test_batch_inference_answers_each_prompt_as_it_would_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    prompts = ["To be", "My lord", "größer"]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    run_example("batch_inference.py", tiny_checkpoint, tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl")
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    alone = LLM(tiny_checkpoint).generate("My lord", SamplingParams(max_tokens=32, seed=1))
    assert [answer["prompt"] for answer in answers] == prompts
    assert (answers[1]["text"], answers[1]["tokens"]) == (alone.text, alone.usage.completion_tokens)


def test_export_gguf_writes_a_file_that_answers_the_same(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shown = run_example("export_gguf.py", tiny_checkpoint, tmp_path / "tiny.gguf")
    assert "same tokens: True" in shown
    assert (tmp_path / "tiny.gguf").stat().st_size > 100_000


def test_custom_component_trains_and_answers(corpus_file: Path, tmp_path: Path) -> None:
    assert len(run_example("custom_component.py", corpus_file, tmp_path / "run")) > 1
    config = json.loads((tmp_path / "run/checkpoints/step_00000020/config.json").read_text())
    assert config["model_type"] == "llm_oxide"


def test_custom_tokenizer_is_saved_in_a_form_that_opens_anywhere(corpus_file: Path, tmp_path: Path) -> None:
    assert "12 tokens; reopened ids are equal: True" in run_example(
        "custom_tokenizer.py", corpus_file, tmp_path / "run"
    )
    tokenizer = load_tokenizer(tmp_path / "run/checkpoints/step_00000020")
    assert tokenizer.encode("größer") == list("größer".encode())
    assert tokenizer.eos_ids == (256,)


def test_callback_prints_a_sample_at_each_checkpoint(corpus_file: Path, tmp_path: Path) -> None:
    shown = run_example("callback.py", corpus_file, tmp_path / "run")
    assert re.findall(r"sample at step (\d+)", shown) == ["10", "20"]


def test_every_example_is_tested() -> None:
    tested = set(re.findall(r'run_example\(\s*"(\w+\.py)"', Path(__file__).read_text(encoding="utf-8")))
    assert {file.name for file in EXAMPLES.glob("*.py")} == tested | {"openai_client_demo.py"}


STAND_INS = {
    "srun": 'exec "$@"',
    "scontrol": 'test "$*" = "show hostnames $SLURM_JOB_NODELIST" && echo localhost',
    "torchrun": f'exec "{sys.executable}" -m torch.distributed.run "$@"',
}


@pytest.mark.skipif(sys.platform == "win32", reason="Slurm runs on Linux")
@pytest.mark.long
def test_slurm_script_trains_and_goes_on_when_the_job_starts_again(tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, line in STAND_INS.items():
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {"SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "PROCESSES_PER_NODE": "2"}
    job |= {"RENDEZVOUS_PORT": str(port), "OMP_NUM_THREADS": "1", "PATH": f"{commands}:{os.environ['PATH']}"}
    tiny = ["data.kind=synthetic", "model.hidden_size=16", "model.intermediate_size=16", "model.num_hidden_layers=1"]
    tiny += ["model.num_attention_heads=2", "model.max_position_embeddings=8", "--max-steps", "2", "--device", "cpu"]
    script, run = EXAMPLES / "distributed" / "slurm.sh", Run(tmp_path / "run")

    def submit() -> str:
        command = ["bash", str(script), str(run.path), *tiny]
        done = subprocess.run(command, env=os.environ | job, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stderr

    submit()
    assert run.last_facts()["world_size"] == 2
    assert run.newest() == run.checkpoint(2)
    assert "already at step 2 of 2" in submit()
