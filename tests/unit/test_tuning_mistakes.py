"""Mistakes of people who tune: each is one error before anything is lost, and none is taken for something else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import llm
from llm.checkpoint import Run, resolve
from llm.data.readers import Row
from llm.data.rows.formats import chat_row
from llm.errors import CheckpointError, ConfigError, DataError, LLMError
from llm.tokenization import load_tokenizer
from tests.unit.chat_rows import write_rows

SETTINGS: dict[str, Any] = {
    "max_steps": 1,
    "batch_size": 1,
    "precision": "float32",
    "device": "cpu",
    "callbacks": [],
    "sample_tokens": 0,
}

SHORT = llm.SamplingParams(max_tokens=2)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = [{"prompt": f"Who are you, {name}?", "completion": f"I am {name}."} for name in "ABCD"]
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", made)


def tune(model: object, rows: Any, out: Path | str, *overrides: str, **more: Any) -> Any:
    return llm.sft(str(model), rows, out=str(out), overrides=overrides, **SETTINGS | more)


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an adapter whose update is not zero."""
    out = tmp_path_factory.mktemp("adapter") / "run"
    tune(tiny_checkpoint, rows, out, "lora.rank=2", max_steps=2, learning_rate=0.05)
    return out


@pytest.fixture(scope="module")
def second(adapter: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an adapter that was trained on the first one."""
    out = tmp_path_factory.mktemp("second") / "run"
    tune(adapter, rows, out, "lora.rank=2", max_steps=2, learning_rate=0.05)
    return out


def test_a_run_never_replaces_what_it_starts_from(tiny_checkpoint: Path, rows: Path, adapter: Path) -> None:
    before = {file: file.read_bytes() for file in adapter.rglob("*") if file.is_file()}
    for model, more in ((adapter, {}), (resolve(adapter).path, {}), (tiny_checkpoint, {"teacher": str(adapter)})):
        with pytest.raises(ConfigError, match=r"must not be where the run's own source lies.*\nhint: choose another"):
            tune(model, rows, adapter, overwrite=True, **more)
    assert {file: file.read_bytes() for file in adapter.rglob("*") if file.is_file()} == before


def test_a_run_may_begin_around_what_it_starts_from(tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_checkpoint, tmp_path / "base"))
    before = {file: file.read_bytes() for file in base.iterdir()}
    tune(base, rows, tmp_path)
    assert Run(tmp_path).newest() is not None
    assert {file: file.read_bytes() for file in base.iterdir()} == before


def test_long_prompts_that_are_held_out_are_dropped(tiny_checkpoint: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.py"
    good.write_text("def one(completions):\n    return [1.0 for _ in completions]\n")
    train = write_rows(tmp_path / "train.jsonl", [{"prompt": f"Who, {name}?"} for name in "ABCD"])
    held_out = write_rows(tmp_path / "held.jsonl", [{"prompt": "Who? " * 200}])
    more = {"too_long": "drop", "overrides": [f'data.validation_paths=["{held_out}"]']}
    run = reinforce(tiny_checkpoint, train, tmp_path / "run", f"{good}:one", **more)
    assert run.is_decoder


def test_no_run_begins_where_a_model_lies(tiny_checkpoint: Path, rows: Path, adapter: Path, tmp_path: Path) -> None:
    for name, model in (("whole", tiny_checkpoint), ("adapter", resolve(adapter).path)):
        place = Path(shutil.copytree(model, tmp_path / name))
        files = {*place.iterdir()}
        with pytest.raises(ConfigError, match=r"holds a model, with a (adapter_)?config\.json"):
            tune(tiny_checkpoint, rows, place)
        assert {*place.iterdir()} <= files | {place / ".lock"}


def test_an_adapter_on_an_adapter_knows_its_base(
    tiny_checkpoint: Path, rows: Path, adapter: Path, second: Path, tmp_path: Path
) -> None:
    assert llm.LLM(second, "float32").generate("The", SHORT).text
    with pytest.raises(CheckpointError, match=r"was trained on another adapter, got the whole weights of"):
        llm.LLM(tiny_checkpoint, adapters={"second": second})
    with pytest.raises(CheckpointError, match=r"was trained on another adapter, got the whole weights of"):
        llm.merge(second, tmp_path / "merged", base=tiny_checkpoint)
    with pytest.raises(CheckpointError, match=r"was trained on whole weights, not on the adapter"):
        llm.merge(adapter, tmp_path / "merged", base=adapter)
    assert not (tmp_path / "merged").exists()
    kept = tmp_path / "kept"
    shutil.copytree(adapter, kept)
    tune(tiny_checkpoint, rows, adapter, "lora.rank=2", max_steps=2, learning_rate=0.02, overwrite=True)
    try:
        with pytest.raises(CheckpointError, match=r"was trained on other weights than those of the adapter"):
            llm.LLM(second)
    finally:
        shutil.rmtree(adapter)
        shutil.copytree(kept, adapter)
    assert llm.LLM(second, "float32").generate("The", SHORT).text


def test_an_empty_name_is_not_the_working_directory(
    tiny_checkpoint: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"a run's directory must have a name, got an empty one"):
        tune(tiny_checkpoint, rows, "")
    with pytest.raises(DataError, match=r"a path of data must not be empty"):
        tune(tiny_checkpoint, [""], tmp_path / "run")
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_a_format_of_preferences_is_no_format_of_conversations() -> None:
    row = Row("a.jsonl, line 1", {"prompt": "a", "completion": "b"})
    for name in ("pairs", "labels"):
        with pytest.raises(DataError, match=rf"must be one of auto, messages, .*, got '{name}'\nhint: `llm dpo`"):
            chat_row(row, name)


def test_a_run_is_accepted_where_a_tokenizer_is(adapter: Path) -> None:
    assert load_tokenizer(adapter).encode("The") == load_tokenizer(adapter / "tokenizer").encode("The")


def reinforce(model: Path, rows: Path, out: Path, *rewards: str, **more: Any) -> Any:
    named = {"group_size": 2, "max_answer_tokens": 4} | SETTINGS | more
    return llm.grpo(str(model), rows, list(rewards), out=out, **named)


def test_mistakes_in_rewards_and_prompts_are_errors_at_once(tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    good, script = tmp_path / "good.py", tmp_path / "script.py"
    good.write_text("def one(completions):\n    return [1.0 for _ in completions]\n")
    script.write_text("import sys\n\ndef one(completions):\n    return [1.0 for _ in completions]\n\nsys.exit(0)\n")
    mistakes: list[tuple[tuple[str, ...], dict[str, Any], type[LLMError], str]] = [
        ((f"{good}:one",) * 2, {}, ConfigError, r"must name each reward once, got '.*good.py:one' 2 times"),
        ((f"{script}:one",), {}, ConfigError, r"SystemExit: 0"),
        (("builtins:max",), {}, DataError, r"`builtins:max`: its parameters can't be read"),
        (
            (f"{good}:one",),
            {"max_answer_tokens": 127, "too_long": "drop"},
            DataError,
            r"no prompt leaves room for an answer of 127 tokens\nhint: lower",
        ),
    ]
    for rewards, more, kind, message in mistakes:
        with pytest.raises(kind, match=message):
            reinforce(tiny_checkpoint, rows, tmp_path / "run", *rewards, **more)
        assert not Run(tmp_path / "run").exists


def test_a_reward_model_is_no_teacher(tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    pairs = [{"prompt": f"{name}?", "chosen": f"Yes, {name}.", "rejected": "No."} for name in "ABCD"]
    file = write_rows(tmp_path / "pairs.jsonl", pairs)
    judge = llm.reward(str(tiny_checkpoint), file, out=tmp_path / "judge", **SETTINGS)
    with pytest.raises(ConfigError, match=r"`distillation.teacher` must predict tokens, got the reward model"):
        tune(tiny_checkpoint, rows, tmp_path / "run", teacher=str(judge))
    assert not Run(tmp_path / "run").exists


@pytest.mark.parametrize(
    ("reward", "last", "message"),
    [
        ("exact", {}, r"line 3: the reward `exact`: the row must have the field `answer`"),
        ("numeric", {"answer": "many"}, r"line 3: .*`answer` must be a number, got 'many'"),
        ("regex", {"pattern": "("}, r"line 3: .*`pattern` must be a regular expression, got '\('"),
        ("json_schema", {"schema": "{"}, r"line 3: .*`schema` must be a JSON schema or its text, got '\{'"),
        ("json_schema", {"schema": {"type": "number?"}}, r"line 3: .*`schema` must be a JSON schema"),
        ("code", {"tests": 5}, r"line 3: .*`tests` must be a text of Python, got 5"),
    ],
)
def test_a_row_without_what_a_reward_needs_is_found_before_the_run_begins(
    tiny_checkpoint: Path, tmp_path: Path, reward: str, last: dict[str, Any], message: str
) -> None:
    fields: dict[str, dict[str, Any]] = {
        "regex": {"pattern": "a"},
        "json_schema": {"schema": True},
        "code": {"tests": "f()"},
    }
    good = fields.get(reward, {"answer": 1})
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a"} | good, {"prompt": "b"} | good, {"prompt": "c"} | last])
    with pytest.raises(DataError, match=message):
        reinforce(tiny_checkpoint, file, tmp_path / "run", reward)
    assert not Run(tmp_path / "run").exists


def test_merged_weights_are_no_gguf_file_without_a_scheme(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(LLMError, match=r"`out` must be a directory without a `scheme`, got .*m\.gguf\nhint"):
        llm.merge(adapter, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_an_alpha_that_is_no_number_is_named(adapter: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(resolve(adapter).path, tmp_path / "adapter"))
    file = place / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": None}))
    with pytest.raises(CheckpointError, match=r"the alpha of model\..* must be a number, got None"):
        llm.LLM(place)


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        (["runs/a"], r"`adapters` must map names to directories, got \['runs/a'\]"),
        ({"a": None}, r"the adapter 'a' must be a directory, got None"),
        ({"a": "no/adapter"}, r"the adapter 'a': no checkpoint at 'no/adapter'"),
    ],
)
def test_adapters_are_looked_for_before_the_base_is_read(tmp_path: Path, adapters: Any, message: str) -> None:
    with pytest.raises(LLMError, match=message):
        llm.LLM(tmp_path / "no-base", adapters=adapters)
