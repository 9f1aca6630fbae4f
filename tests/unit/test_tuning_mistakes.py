"""Mistakes of people who tune: each is one error before anything is lost, and none is taken for something else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import llm
from llm.checkpoint import Run, resolve
from llm.cli.main import app
from llm.data.batch import PromptRow
from llm.data.readers import Row
from llm.data.rows.formats import chat_row
from llm.errors import CheckpointError, ConfigError, DataError, LLMError, TrainingError
from llm.settings.grpo import GrpoConfig
from llm.settings.merge import load_run_config
from llm.tokenization import load_tokenizer
from llm.training.assembly import build_rows
from llm.training.rewards.functions import Rewards
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


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("{'a': 1}", r"must return a list of 1 numbers, got a dict: \{'a': 1\}"),
        ("'1'", r"must return a list of 1 numbers, got a str: '1'"),
        ("[10**400]", r"must return a list of 1 numbers, got \[1000"),
        ("[float('nan')]", r"must return finite numbers, got nan for answer 1 of 1"),
    ],
)
def test_what_is_no_list_of_numbers_is_no_reward(tmp_path: Path, result: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(f"def one(completions):\n    return {result}\n")
    rewards = Rewards(GrpoConfig(rewards=(f"{tmp_path / 'mine.py'}:one",)))
    with pytest.raises(TrainingError, match=message):
        rewards.of(PromptRow("rows.jsonl, line 1", "a", [1], {}), ["b"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("grpo.reward_weights=[nan]", r"`grpo.reward_weights\[0\]` must be a finite number, got nan"),
        ("grpo.reward_timeout_s=inf", r"`grpo.reward_timeout_s` must be a finite number, got inf"),
        ("preference.beta=inf", r"`preference.beta` must be a finite number, got inf"),
        (f"optimizer.learning_rate={10**400}", r"`optimizer.learning_rate` must be a finite number, got one of more"),
        ("lora.rank=1e9", r"`lora.rank` must be `int` <= 16384, got 1000000000"),
    ],
)
def test_every_setting_is_a_finite_number(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(None, [setting], {})


@pytest.mark.parametrize("data", [[{"prompt": "a"}], 5, {"rows": "a"}])
def test_rows_are_no_paths(tiny_checkpoint: Path, tmp_path: Path, data: Any) -> None:
    with pytest.raises(ConfigError, match=r"`data` must be a path or a list of paths, got (dict|int)\nhint: write"):
        tune(tiny_checkpoint, data, tmp_path / "run")


def test_rows_of_a_context_beyond_the_usual_one_are_shown(tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a " * 300, "completion": "b " * 300}])
    for more in (["--context-length", "4000"], []):
        words = ["data", "preview", str(file), "--tokenizer", str(tiny_checkpoint), "--chat-template", "chatml", *more]
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.stdout.startswith("sample 0, of 0 to 0\n")
        assert done.stdout.count("b b b") > 1


def test_the_model_may_stand_before_the_rows(tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "run", tmp_path / "tune.toml"
    config.write_text(f'[training]\ninit_from = "{tiny_checkpoint}"\n')
    settings = [f"{name}={value}" for name, value in SETTINGS.items() if name != "callbacks"]
    lora = ["lora.rank=2", "lora.target_modules=q_proj,v_proj"]

    def tuned(*words: object) -> Any:
        return CliRunner().invoke(app, [*map(str, words), "--overwrite", "--out", str(out), *settings])

    for words in (["sft", tiny_checkpoint, rows], ["sft", config, rows], ["sft", config, rows.parent]):
        assert tuned(*words, *lora).exit_code == 0
        found = Run(out).read_config()
        assert (found.data.paths, found.lora.target_modules) == ((str(words[-1]),), ("q_proj", "v_proj"))
    for verb in ("sft", "dpo"):
        assert "rows of conversations fine-tune a model, and none is named" in str(tuned(verb, rows).exception)
    assert "no checkpoint at 'no-model'" in str(tuned("sft", "no-model", rows).exception)


def test_an_answer_that_is_no_text_is_named() -> None:
    with pytest.raises(DataError, match=r"`completion` must be text or a list of at least one message, got 7"):
        chat_row(Row("rows.jsonl, line 1", {"prompt": "a", "completion": 7}), "auto")


def test_nesting_without_an_end_is_an_error_of_its_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("[" * 3000 + "]" * 3000 + "\n")
    with pytest.raises(DataError, match=r"line 1: each line must be a JSON object, got '\[\[\["):
        tune(tiny_checkpoint, file, tmp_path / "run")
    with pytest.raises(DataError, match=r"line 1: each line must be a JSON object, got '\[\[\["):
        llm.train(data=file, out=tmp_path / "run")


@pytest.mark.parametrize(("fraction", "words"), [(0.2, "5 answers, 1 of them held out;"), (0.0, "5 answers;")])
def test_single_answers_are_held_out_one_by_one(
    tiny_checkpoint: Path, tmp_path: Path, fraction: float, words: str
) -> None:
    made = [{"prompt": f"{name}?", "completion": "Yes.", "label": name < "C"} for name in "ABCDE"]
    file, out = write_rows(tmp_path / "rows.jsonl", made), tmp_path / "run"
    more = {"validation_fraction": fraction, "batch_size": 2, "loss": "kto"}
    llm.dpo(str(tiny_checkpoint), file, out=out, **SETTINGS | more)
    assert words in build_rows(Run(out).read_config(), Run(out).data).notices()[0]


def test_a_pair_differs_after_the_cut(tiny_checkpoint: Path, tmp_path: Path) -> None:
    text = " ".join(f"word {number}" for number in range(200))
    good = {"prompt": "b", "chosen": f"Yes {text}", "rejected": f"No {text}"}
    alike = {"prompt": "a", "chosen": f"{text} yes", "rejected": f"{text} no"}
    file = write_rows(tmp_path / "rows.jsonl", [good, alike])
    message = r"line 2: `chosen` and `rejected` are the same answer when they are cut to \d+ tokens\nhint: .*=drop"
    with pytest.raises(DataError, match=message):
        llm.dpo(str(tiny_checkpoint), file, out=tmp_path / "run", **SETTINGS | {"too_long": "cut"})
    assert not Run(tmp_path / "run").exists
    with pytest.raises(DataError, match=r"line 1: the row has .* 2 of 2 rows are too long\nhint"):
        llm.dpo(str(tiny_checkpoint), file, out=tmp_path / "run", **SETTINGS)
    write_rows(file, [good])
    llm.dpo(str(tiny_checkpoint), file, out=tmp_path / "run", **SETTINGS | {"too_long": "cut"})


def test_a_teacher_reads_samples_as_long_as_its_student_does(tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    short = Path(shutil.copytree(tiny_checkpoint, tmp_path / "short"))
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16}))
    with pytest.raises(ConfigError, match=r"must take samples of \d+ tokens, got .*short for 16\nhint: .*length=16"):
        tune(tiny_checkpoint, rows, tmp_path / "run", teacher=str(short))


def test_a_teacher_that_is_an_adapter_of_the_run_is_not_replaced(
    tiny_checkpoint: Path, rows: Path, adapter: Path, second: Path
) -> None:
    before = {file: file.read_bytes() for file in adapter.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError, match=r"must not be where the run's own source lies"):
        tune(tiny_checkpoint, rows, adapter, overwrite=True, teacher=str(second))
    assert {file: file.read_bytes() for file in adapter.rglob("*") if file.is_file()} == before


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_alpha": None}, r"the alpha of model\..* must be a number, got None"),
        ({"r": 3}, r"the rank of model\..* must be 2, as in its weights, got 3"),
        ({"rank_pattern": {"down_proj": 4}}, r"the rank of model\..*down_proj must be 2, as in its weights, got 4"),
        ({"use_dora": True}, r"`use_dora` must be False, since model\..* lacks magnitudes"),
    ],
)
def test_an_adapter_whose_config_contradicts_its_weights_is_refused(
    adapter: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    place = Path(shutil.copytree(resolve(adapter).path, tmp_path / "adapter"))
    file = place / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(CheckpointError, match=message):
        llm.LLM(place)


def test_weights_of_an_adapter_are_no_integers(adapter: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(resolve(adapter).path, tmp_path / "adapter"))
    file = place / "adapter_model.safetensors"
    save_file({name: tensor.int() for name, tensor in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match=r"must be floating-point numbers, got torch.int32 in base_model"):
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
