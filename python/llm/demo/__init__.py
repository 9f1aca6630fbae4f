"""`llm demo` goes from a text file to a chat endpoint on a laptop's CPU in a few minutes."""

import importlib.util
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from llm.api import LLM, sft, train
from llm.checkpoint import Run
from llm.demo.dialogues import EPOCHS, QUESTIONS, TEACHING, write_dialogues
from llm.errors import ConfigError, MissingExtraError
from llm.serving import ServerHandle
from llm.settings.model import ModelConfig
from llm.settings.run import DataConfig, GenerationConfig, OptimizerConfig, RunConfig, TokenizerConfig, TrainingConfig
from llm.tokenization.speed import sample_text

if TYPE_CHECKING:
    import openai

# 0.86 M parameters. docs/development.md, "The demo's settings", lists the settings that were compared.
DEMO_CONFIG = RunConfig(
    model=ModelConfig(
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    ),
    tokenizer=TokenizerConfig(vocab_size=1024, chat_template="play"),
    data=DataConfig(validation_fraction=0.1),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=50, min_learning_rate_ratio=0.05),
    training=TrainingConfig(max_steps=800, batch_size=8, validate_every=200, checkpoint_every=200, precision="float32"),
    generation=GenerationConfig(temperature=0.8, top_k=50),
)
_MARKER = ".llm-demo"
QUESTION = "What news, my lord, from the king?"


def demo_corpus() -> str:
    """Returns Tiny Shakespeare (public domain), which ships with the package."""
    return sample_text()


def run_demo(out: str | os.PathLike[str] = "runs/demo", max_steps: int | None = None, *, chat: bool = False) -> None:
    """Trains a tokenizer and a model on Shakespeare, prints samples, serves the model and streams an answer.

    Args:
        out: The run's directory. A run left there by an earlier demo is replaced.
        max_steps: Number of optimizer steps; None keeps the demo's 800.
        chat: Whether the model is then taught to answer questions, in a second run at `out` with `-chat` after it.

    Raises:
        MissingExtraError: The `openai` client is not installed.
        ConfigError: `out` holds files that no demo created.
    """
    if importlib.util.find_spec("openai") is None:
        raise MissingExtraError("the demo talks to its server through `openai`\nhint: pip install 'llm-oxide[demo]'")
    console = Console()
    directory = _fresh_directory(Path(out))
    tuned = _fresh_directory(directory.with_name(f"{directory.name}-chat")) if chat else None
    started = time.perf_counter()
    console.rule("1 · Train a tokenizer and a model on Shakespeare")
    _train(directory, max_steps)
    _show_losses(console, Run(directory), time.perf_counter() - started)
    console.rule("2 · Sample from the model")
    _show_samples(console, directory)
    if tuned is None:
        console.rule("3 · Serve the model and query it with the openai client")
        _ask_server(console, directory)
    else:
        console.rule("3 · Teach it to answer questions")
        _teach(console, directory, tuned, max_steps)
        console.rule("4 · Serve the model and query it with the openai client")
        _ask_questions(console, tuned)
    console.rule(f"{4 if tuned is None else 5} · Next steps")
    _say_how_to_go_on(console, directory, tuned)


def _fresh_directory(directory: Path) -> Path:
    """Returns an empty directory for the run. Only a directory that an earlier demo created is ever deleted."""
    if (directory / _MARKER).is_file():
        shutil.rmtree(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(
            f"{directory} exists and was not made by an earlier demo\nhint: choose another directory with `--out`"
        )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _MARKER).write_text("Created by `llm demo`, which replaces this directory on its next run.\n")
    return directory


def _train(directory: Path, max_steps: int | None) -> None:
    corpus = directory / "corpus.txt"
    corpus.write_text(demo_corpus(), encoding="utf-8")
    train(DEMO_CONFIG, data=corpus, out=directory, max_steps=max_steps)


def _show_losses(console: Console, run: Run, seconds: float) -> None:
    log = run.read_log()
    losses = [line["loss"] for line in log if "loss" in line]
    final = [line for line in log if "bits_per_byte" in line][-1]
    console.print(
        f"training loss {losses[0]:.2f} → {losses[-1]:.2f} in {seconds:.0f} s; "
        f"{final['bits_per_byte']:.3f} bits per byte on the held-out last tenth of the text",
        highlight=False,
    )
    console.print(f"log: {run.log_file}" + (f"   loss curve: {run.plot_file}" if run.plot_file.is_file() else ""))


def _show_samples(console: Console, directory: Path) -> None:
    model = LLM(directory)
    for seed, prompt in enumerate(("ROMEO:\n", "First Citizen:\nWe ")):
        output = model.generate(prompt, model.sampling_params(max_tokens=60, seed=seed))
        console.print(f"{prompt}{output.text} …\n", highlight=False, markup=False)


def _ask_server(console: Console, directory: Path) -> None:
    import openai

    console.print(
        "This is a base model that continues a play, not an assistant: your message becomes ROMEO's line, "
        "and the model speaks JULIET's.\n",
        highlight=False,
    )
    with ServerHandle(directory) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="none")
        console.print(f"[bold]ROMEO:[/bold]\n{QUESTION}\n\n[bold]JULIET:[/bold]", highlight=False)
        _stream(console, client, QUESTION)


def _teach(console: Console, directory: Path, tuned: Path, max_steps: int | None) -> None:
    rows = directory / "dialogues.jsonl"
    number = write_dialogues(rows)
    started = time.perf_counter()
    length = f"training.epochs={EPOCHS}" if max_steps is None else f"training.max_steps={max_steps}"
    sft(directory, rows, out=tuned, overrides=[length], **TEACHING)
    losses = [line["loss"] for line in Run(tuned).read_log() if "loss" in line]
    console.print(
        f"{number} dialogues, loss {losses[0]:.2f} → {losses[-1]:.2f} in {time.perf_counter() - started:.0f} s",
        highlight=False,
    )


def _ask_questions(console: Console, directory: Path) -> None:
    import openai

    with ServerHandle(directory) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="none")
        for question in QUESTIONS:
            console.print(f"\n[bold]You:[/bold] {question}\n[bold]Model:[/bold] ", end="", highlight=False)
            _stream(console, client, question, temperature=0)


def _stream(console: Console, client: "openai.OpenAI", question: str, **params: float) -> None:
    started, first, num_tokens = time.perf_counter(), None, 0
    chunks = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": question}],
        max_tokens=120,
        seed=3,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=params,
    )
    for chunk in chunks:
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.perf_counter()
            console.print(chunk.choices[0].delta.content, end="", highlight=False, markup=False)
        if chunk.usage is not None:
            num_tokens = chunk.usage.completion_tokens
    ended = time.perf_counter()
    waited = 1000 * ((first or ended) - started)
    console.print(
        f"\n\n{num_tokens} tokens, {num_tokens / (ended - started):.0f} tokens/s, first after {waited:.0f} ms"
    )


def _say_how_to_go_on(console: Console, base: Path, tuned: Path | None) -> None:
    llm = "llm" if shutil.which("llm") else os.path.relpath(Path(sys.executable).with_name("llm"))
    directory = tuned or base
    steps = {
        f"{llm} chat {directory}": "chat with the model",
        f'{llm} generate {base} "JULIET:" --seed 7': "complete a prompt",
        f"{llm} serve {directory} --port 8000": "serve any OpenAI client at http://127.0.0.1:8000/v1",
        f"{llm} train --data your.txt --out runs/mine": "train on your own text",
    }
    if tuned is not None:
        rows = base / "dialogues.jsonl"
        steps[f"{llm} sft {rows} --model {base} --out runs/mine"] = "teach it your own dialogues: edit the file"
    width = max(map(len, steps))
    for command, what in steps.items():
        console.print(f"  {command:<{width}}  {what}", highlight=False, markup=False, soft_wrap=True)
