"""The examples run as their first lines say; the client's example is run by the server's tests."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llm import LLM, SamplingParams
from llm.checkpoint import Run
from llm.data.readers import read_rows
from llm.data.rows import chat_row
from llm.tokenization import choose_chat_template, load_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name: str, *arguments: object) -> str:
    """What an example prints."""
    done = start_example(name, *arguments)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def start_example(name: str, *arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """How an example ends."""
    command = [sys.executable, "-X", "utf8", str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120, check=False, cwd=folder)


@pytest.mark.parametrize("name", sorted(file.name for file in EXAMPLES.glob("*.py")))
def test_example_prints_its_usage_and_writes_nothing(name: str, tmp_path: Path) -> None:
    done = start_example(name, "--help", folder=tmp_path)
    assert done.returncode == 1
    assert f"python examples/{name} " in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert not list(tmp_path.iterdir())


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


def test_batch_inference_names_the_line_of_a_row_without_a_prompt(tiny_checkpoint: Path, tmp_path: Path) -> None:
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text('{"prompt": "To be"}\n\n{"text": "My lord"}\n')
    done = start_example("batch_inference.py", tiny_checkpoint, prompts, answers)
    assert done.returncode == 1
    message = f'{prompts}, line 3: a row must be an object with a `prompt`, got {{"text": "My lord"}}'
    assert done.stderr.decode().strip() == message
    assert not answers.exists()


def test_export_gguf_writes_a_file_that_answers_the_same(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shown = run_example("export_gguf.py", tiny_checkpoint, tmp_path / "tiny.gguf")
    assert "same tokens: True" in shown
    assert (tmp_path / "tiny.gguf").stat().st_size > 100_000


def test_make_dialogues_writes_the_rows_that_llm_sft_reads(tmp_path: Path) -> None:
    shown = run_example("make_dialogues.py", tmp_path / "facts.jsonl")
    assert shown.startswith("500 dialogues about 50 facts")
    rows = [chat_row(row) for row in read_rows(tmp_path / "facts.jsonl")]
    assert len({tuple(message["content"] for message in row.messages) for row in rows}) == 500


def chat_model(tiny_checkpoint: Path, model: Path) -> Path:
    """A copy of the tiny checkpoint with a chat template."""
    shutil.copytree(tiny_checkpoint, model)
    tokenizer = load_tokenizer(model)
    choose_chat_template(tokenizer, "chatml")
    tokenizer.save(model)
    return model


def test_finetune_sft_learns_its_conversations(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shown = run_example("finetune_sft.py", chat_model(tiny_checkpoint, tmp_path / "model"), tmp_path / "shop")
    assert re.search(r"before: .*after: ", shown, re.DOTALL)
    losses = [line["loss"] for line in Run(tmp_path / "shop").read_log() if "loss" in line]
    assert losses[-1] < losses[0]


def test_lora_writes_an_adapter_that_answers_as_its_merged_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shown = run_example("lora.py", chat_model(tiny_checkpoint, tmp_path / "model"), tmp_path / "greeting")
    assert "merged says the same: True" in shown
    assert (tmp_path / "greeting.merged/model.safetensors").is_file()


def test_distillation_trains_a_teacher_and_its_students(corpus_file: Path, tmp_path: Path) -> None:
    shown = run_example("distillation.py", corpus_file, tmp_path / "runs")
    losses = {name: float(value) for name, value in re.findall(r"(\w+): validation loss ([\d.]+)", shown)}
    assert losses["teacher"] < losses["alone"]
    assert losses.keys() == {"teacher", "student", "alone"}
    apart = [line["divergence"] for line in Run(tmp_path / "runs/student").read_log() if "divergence" in line]
    assert apart[-1] < apart[0] / 2


def test_dpo_trains_on_its_pairs_and_asks_before_and_after(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shown = run_example("dpo.py", chat_model(tiny_checkpoint, tmp_path / "model"), tmp_path / "terse")
    assert "before: " in shown
    assert "after: " in shown
    accuracies = [
        line["validation_accuracy"] for line in Run(tmp_path / "terse").read_log() if "validation_accuracy" in line
    ]
    assert len(accuracies) > 1


def test_grpo_draws_rewards_and_answers(tmp_path: Path) -> None:
    shown = run_example("grpo.py", tmp_path, 2)
    assert shown.count("fbda>") == 2
    assert [line["step"] for line in Run(tmp_path / "sorts").read_log() if "reward" in line] == [1, 2]


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


def test_train_tokenizer_saves_one_that_gives_the_text_back(corpus_file: Path, tmp_path: Path) -> None:
    shown = run_example("train_tokenizer.py", corpus_file, tmp_path / "tokenizer")
    assert "1024 tokens" in shown
    assert "decoded text is equal: True" in shown
    assert load_tokenizer(tmp_path / "tokenizer").vocab_size == 1024


def test_pretrain_resumes_its_run(corpus_file: Path, tmp_path: Path) -> None:
    assert "step_00000060" in run_example("pretrain.py", corpus_file, tmp_path / "run")
    assert Run(tmp_path / "run").read_log()[-1]["step"] == 60


def test_quantise_writes_weights_of_few_bits(tiny_checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    shown = run_example("quantise.py", tiny_checkpoint, tmp_path / "int4", corpus_file)
    assert "bits a weight" in shown
    assert json.loads((tmp_path / "int4/config.json").read_text())["quantization_config"]["format"] == "pack-quantized"


def test_structured_output_has_the_forms_that_were_asked_for(tiny_checkpoint: Path) -> None:
    shown = run_example("structured_output.py", tiny_checkpoint)
    assert re.search(
        r"schema: \['age', 'mood', 'name'\] (merry|grim)\nregex:  1[56]\d\d\nchoice: (ROMEO|JULIET)\n", shown
    )


def test_custom_task_learns_the_rule(tmp_path: Path) -> None:
    loss = float(run_example("custom_task.py", tmp_path / "run").split()[-1])
    assert loss < 0.05  # a constant gives 0.33, the noise alone 0.005


def test_tools_are_called_with_arguments_that_parse() -> None:
    file = EXAMPLES.parent / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not file.exists():
        pytest.skip("SmolLM2 is not here: run `make test-data`")
    assert re.match(r"add\((-?\d+), (-?\d+)\) = -?\d+\n.", run_example("tools.py", file))


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
