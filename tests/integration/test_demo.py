"""The demo's promises: size, quality, one model from training to serving, and the whole show."""

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
import transformers

from llm import SamplingParams
from llm.checkpoint import Run, load_model
from llm.data import TextDataModule
from llm.demo import DEMO_CONFIG, demo_corpus
from llm.inference import Delta, Engine, load_engine
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.training import JsonlLogger, LanguageModelingTask, TrainingEngine
from llm.training.preparation import RunText


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainingEngine:
    """The demo's model after all its steps, still in the hands of the loop."""
    run = Run(tmp_path_factory.mktemp("runs") / "demo")
    run.path.mkdir()
    (run.path / "corpus.txt").write_text(demo_corpus(), encoding="utf-8")
    data = msgspec.structs.replace(DEMO_CONFIG.data, paths=(str(run.path / "corpus.txt"),))
    text = RunText(data, run)
    tokenizer = text.tokenizer(DEMO_CONFIG.tokenizer)
    text.tokenize(tokenizer)
    model = msgspec.structs.replace(DEMO_CONFIG.model, vocab_size=tokenizer.vocab_size)
    config = msgspec.structs.replace(DEMO_CONFIG, model=model)
    run.create(config, {})
    engine = TrainingEngine(
        config,
        LanguageModelingTask(model, tokenizer),
        TextDataModule(run.data, config.context_length),
        run,
        tokenizer=tokenizer,
        callbacks=[JsonlLogger(run)],
    )
    engine.fit()
    return engine


def test_the_demo_model_is_small_and_reaches_its_bits_per_byte(trained: TrainingEngine) -> None:
    assert isinstance(trained.model, DecoderModel)
    assert trained.model.num_parameters() <= 1_200_000
    validations = [line["bits_per_byte"] for line in trained.run.read_log() if "bits_per_byte" in line]
    assert validations[-1] <= 2.35
    held_out = demo_corpus().encode()[-111_539:].decode()
    assert trained.validate()["bits_per_byte"] == validations[-1]
    tokens = trained.run.newest().tokenizer().encode(held_out)
    [facts] = TextDataModule(trained.run.data, 256).facts()
    assert abs(len(tokens) - facts["validation_tokens"]) <= 1  # the end token


def test_trained_reloaded_and_served_logits_are_the_same(trained: TrainingEngine) -> None:
    checkpoint = trained.run.newest()
    engine = load_engine(checkpoint, dtype="float32")
    ids = engine.tokenizer.encode(
        "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak."
    )
    given = (torch.tensor(ids), positions_of((len(ids),)), ForwardContext.for_sequences((len(ids),)))
    with torch.no_grad():
        from_training = trained.model.eval()(*given)
        reloaded = load_model(checkpoint, "float32")(*given)
    assert torch.equal(from_training, reloaded)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        assert (theirs(given[0][None]).logits[0] - reloaded).abs().max() <= 1e-4
    assert transformers.AutoTokenizer.from_pretrained(checkpoint)(engine.tokenizer.decode(ids))["input_ids"] == ids
    served = served_logits(engine, ids, continuation=ids[-20:])
    with torch.no_grad():
        ids_after = [*ids, *ids[-20:]]
        whole = trained.model(
            torch.tensor(ids_after), positions_of((len(ids_after),)), ForwardContext.for_sequences((len(ids_after),))
        )
    assert len(served) == 21
    for row, logits in enumerate(served):
        assert (logits - whole[len(ids) - 1 + row]).abs().max() <= 1e-4


def served_logits(engine: Engine, prompt: list[int], continuation: list[int]) -> list[torch.Tensor]:
    """Logits of the serving path for a prompt and then token by token, the continuation forced by the logits' peak."""
    seen: list[torch.Tensor] = []
    run = engine.runner.run

    def force(plan):
        logits = run(plan).clone()
        seen.append(logits[0].clone())
        if len(seen) <= len(continuation):
            logits[0, continuation[len(seen) - 1]] = 1e4
        return logits

    engine.runner.run = force
    params = SamplingParams(temperature=0.0, max_tokens=len(continuation) + 1, ignore_eos=True)
    engine.add_request(prompt, params)
    while engine.has_unfinished():
        assert all(isinstance(event, Delta) for _, event in engine.step())
    return seen


def test_the_show_runs_from_text_to_the_openai_client(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "llm"), "demo", "--steps", "12", "--out", "runs/demo"]
    environment = os.environ | {"COLUMNS": "140"}
    for more in ([], ["--chat"]):  # the second time replaces the first run
        done = subprocess.run(
            [*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
    assert re.search(r"training loss \d\.\d\d → \d\.\d\d in \d+ s; \d\.\d{3} bits per byte", done.stdout)
    assert re.search(r"40 dialogues, loss \d\.\d\d → \d\.\d\d in \d+ s", done.stdout)
    assert "You: What are you?" in done.stdout
    assert re.search(r"\d+ tokens, \d+ tokens/s, first after \d+ ms", done.stdout)
    parts = (
        "llm chat runs/demo-chat",
        "llm serve runs/demo-chat",
        "llm train --data",
        "llm sft runs/demo/dialogues.jsonl",
    )
    for part in parts:
        assert part in done.stdout
    assert (tmp_path / "runs/demo/loss.png").is_file()


@pytest.mark.parametrize("name", ["thesis.tex", "corpus.txt", "run.json"])
def test_the_show_removes_nothing_that_no_demo_made(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("years of work")
    command = [str(Path(sys.executable).parent / "llm"), "demo", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "was not made by an earlier demo" in done.stderr
    assert (tmp_path / name).read_text() == "years of work"
