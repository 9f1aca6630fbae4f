"""The words that people bring to `llm train`: each works, or its error names the right form."""

from pathlib import Path
from typing import Any

import pytest

import llm
from llm.checkpoint import Run
from llm.cli.arguments import sorted_arguments
from llm.cli.main import app
from llm.errors import ConfigError
from llm.settings.merge import load_run_config
from llm.settings.paths import quoted
from llm.settings.run import RunConfig

TINY = [
    *("model.hidden_size=16", "model.intermediate_size=24", "model.num_hidden_layers=1", "tokenizer.vocab_size=260"),
    *("data.context_length=8", "batch_size=2", "max_steps=1"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "c.txt"
    file.write_text("To be, or not to be, that is the question.\n" * 20)
    return file


def llm_train(*arguments: object) -> None:
    app(["train", *map(str, arguments)], standalone_mode=False)


# What is typed after `llm train TEXT --out RUN`, and the setting it must make.
WORKS: list[tuple[str, str, Any]] = [
    ("--lr 3e-4", "optimizer.learning_rate", 3e-4),
    ("--learning-rate 3e-4", "optimizer.learning_rate", 3e-4),
    ("lr=3e-4", "optimizer.learning_rate", 3e-4),
    ("learning_rate=3e-4", "optimizer.learning_rate", 3e-4),
    ("--optimizer.learning_rate=3e-4", "optimizer.learning_rate", 3e-4),
    ("--seed 7", "training.seed", 7),
    ("--device cpu", "training.device", "cpu"),
    ("--hidden-size 32", "model.hidden_size", 32),
    ("--hidden_size=32", "model.hidden_size", 32),
    ("--n-layer 2", "model.num_hidden_layers", 2),
    ("--steps 2", "training.max_steps", 2),
    ("--max-iters 2", "training.max_steps", 2),
    ("max_steps=2", "training.max_steps", 2),
    ("training.max_steps=2e0", "training.max_steps", 2),
    ("--warmup-iters 5", "optimizer.warmup_steps", 5),
    ("warmup_steps=1e3", "optimizer.warmup_steps", 1000),
    ("--grad-clip 0.5", "optimizer.max_grad_norm", 0.5),
    ("--weight-decay 0", "optimizer.weight_decay", 0.0),
    ("--block-size 4", "data.context_length", 4),
    ("block_size=4", "data.context_length", 4),
    ("--seq-len 4", "data.context_length", 4),
    ("--dropout 0.1", "model.dropout", 0.1),
    ("--validation-data held.txt", "data.validation_paths", ("held.txt",)),
    ("--val-data held.txt", "data.validation_paths", ("held.txt",)),
    ("--precision bf16", "training.precision", "bfloat16"),
    ("training.precision=fp32", "training.precision", "float32"),
    ("model.tie_word_embeddings=False", "model.tie_word_embeddings", False),
    ("--no-tie-word-embeddings", "model.tie_word_embeddings", False),
    ("--gradient-checkpointing", "training.gradient_checkpointing", True),
    ("gradient_checkpointing=True", "training.gradient_checkpointing", True),
    ("--max-grad-norm none", "optimizer.max_grad_norm", None),
    ("--save-every 7", "training.checkpoint_every", 7),
    ("--eval-interval 7", "training.validate_every", 7),
    ("--num-epochs 1", "training.epochs", 1),
    ("--wandb", "training.log_to", ("wandb",)),
    ("--optimizer muon", "optimizer.name", "muon"),
    ("optimizer=muon", "optimizer.name", "muon"),
    ("--size 15M", "training.size", "15M"),
    ("--init-from runs/base", "training.init_from", "runs/base"),
    ("compile=True", "training.compile", "on"),
    ("--compile=False", "training.compile", "off"),
    ("--lr-scheduler-type cosine", "optimizer.schedule", "cosine"),
    ("grad_accum=2", "training.gradient_accumulation_steps", 2),
]


def settings_of(words: list[str]) -> RunConfig:
    given = sorted_arguments(words)
    return load_run_config(given.file, given.overrides)


@pytest.mark.parametrize(("typed", "name", "value"), WORKS, ids=[typed for typed, _, _ in WORKS])
def test_natural_words_become_settings(typed: str, name: str, value: Any) -> None:
    section, field = name.split(".")
    assert getattr(getattr(settings_of(typed.split()), section), field) == value


# What is typed after `llm train`, and what the error says.
NAMED: list[tuple[str, str]] = [
    ("training.learning_rate=1e-3", "did you mean `optimizer.learning_rate`"),
    ("optimizer.lr=1e-3", "did you mean `optimizer.learning_rate`"),
    ("training.block_size=4", "did you mean `data.context_length`"),
    ("training.max_grad_norm=1", "did you mean `optimizer.max_grad_norm`"),
    ("training.epoch=2", "did you mean `epochs`"),
    ("model.n_layer=2", "did you mean `model.num_hidden_layers`"),
    ("vocab_size=512", "did you mean `tokenizer.vocab_size=…`"),
    ("--vocab-size 512", "did you mean `tokenizer.vocab_size=…`"),
    ("--min-lr 1e-4", "did you mean `optimizer.min_learning_rate_ratio=…`"),
    ("--learning-rat 1e-4", "did you mean `optimizer.learning_rate=…`"),
    ("--dtype bf16", "did you mean `training.precision=…`"),
    ("--output-dir r", "did you mean `--out DIRECTORY`"),
    ("--resume-from r", "did you mean `--resume RUN`"),
    ("--fp8", "did you mean `training.precision=float8`?"),
    ("fp8=true", "did you mean `training.precision=float8`?"),
    ("training.bf16=true", "did you mean `training.precision=bfloat16`?"),
    ("--fsdp", "did you mean `training.sharding=fsdp`?"),
    ("--gpus 2", "did you mean `--nproc N`?"),
    ("--zzz 1", "`llm train --settings` lists every setting"),
    ("--hidden-size", "`--hidden-size` needs a value"),
    ("--compile", "`--compile` needs a value\nhint: one of auto, off, on: `--compile VALUE`"),
    ("--hidden-size --dropout 0.1", "`--hidden-size` needs a value"),
    ("a.toml b.toml", "at most one settings file can be given, got a.toml, b.toml"),
    ("training.precision=int8", "`training.precision` must be one of"),
]


@pytest.mark.parametrize(("typed", "said"), NAMED, ids=[typed for typed, _ in NAMED])
def test_the_errors_of_other_words_name_the_right_form(typed: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings_of(typed.split())
    assert said in str(error.value)


def test_a_text_needs_no_option_and_a_run_to_resume_none_either(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    llm_train(text, *TINY, "--lr", "3e-4", "--seed", 7, "--device", "cpu", "--output", "run")
    config = Run("run").read_config()
    assert (config.optimizer.learning_rate, config.training.seed, config.training.device) == (3e-4, 7, "cpu")
    assert config.data.paths == (str(text),)
    llm_train("--resume", "run", "--max-steps", 2)
    llm_train("--out", "run", "--resume", "steps=3")
    assert Run("run").newest() == Run("run").checkpoint(3)


def test_arguments_that_are_no_text_are_said_to_be_none(text: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("lr: 1")
    for word in ("resume", tmp_path / "config.yaml", "shakespear"):
        with pytest.raises(ConfigError, match="is neither a setting, nor a settings file"):
            llm_train(word, "--out", tmp_path / "run")
    with pytest.raises(ConfigError, match=r"hint: settings are written in TOML"):
        llm_train(tmp_path / "config.yaml", "--out", tmp_path / "run")
    with pytest.raises(ConfigError, match=r"`--out` is missing\nhint: .* `--out runs/c`"):
        llm_train(text)


def test_the_next_command_is_quoted_where_a_shell_needs_it(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    llm_train(text, *TINY, "--out", "weird dir/ünï")
    path = quoted("weird dir/ünï")
    assert path in ("'weird dir/ünï'", '"weird dir/ünï"')
    assert capsys.readouterr().out.endswith(f"next:  llm generate {path} 'Once upon'   ·   llm serve {path}\n")


def test_directories_that_are_files_are_refused_by_the_name_of_their_setting(text: Path, tmp_path: Path) -> None:
    for out in (text, text / "runs" / "base"):
        with pytest.raises(ConfigError, match=r"`--out` must be a directory, got .*c\.txt\nhint: name another path"):
            llm_train(text, *TINY, "--out", out)
    with pytest.raises(
        ConfigError, match=r"`data\.cache` must be a directory, got the file .*c\.txt\nhint: name another"
    ):
        llm_train(text, *TINY, f"data.cache={text}", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_python_takes_settings_of_any_section_by_their_name(text: Path, tmp_path: Path) -> None:
    checkpoint = llm.train(data=text, overrides=TINY, out=tmp_path / "run", learning_rate=3e-4, hidden_size=32)
    config = Run(tmp_path / "run").read_config()
    assert (config.optimizer.learning_rate, checkpoint.config.hidden_size) == (3e-4, 32)
    with pytest.raises(ConfigError, match="`learn_rate` is not the name of one setting\nhint: did you mean `optimizer"):
        llm.train(data=text, out=tmp_path / "other", learn_rate=1e-3)


def test_settings_are_listed_with_type_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    llm_train("--settings", "warmup")
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["setting", "type", "default", "meaning"]
    assert ["optimizer.warmup_steps", "int", "≥", "0"] in [row.split()[:4] for row in rows]
    assert all("warmup" in row for row in rows)
    llm_train("--settings", "Learning-Rate")
    assert "optimizer.learning_rate" in capsys.readouterr().out
    for word, hint in (("lr", "did you mean `optimizer.learning_rate=…`?"), ("zzz", "lists every setting")):
        with pytest.raises(ConfigError, match=f"no setting has '{word}' in its name or meaning") as error:
            llm_train("--settings", word)
        assert hint in str(error.value)
