"""Rewards: functions by name, built-in checks, and code in a process with limits."""

import threading
from pathlib import Path
from typing import Any

import pytest

from llm.data.batch import PromptRow
from llm.errors import ConfigError, DataError, TrainingError
from llm.settings.grpo import GrpoConfig
from llm.training.rewards import Rewards, load_reward, reward_name
from llm.training.rewards.sandbox import matches, passes_tests

FUNCTIONS = """
import threading
def length(completions): return [len(text) for text in completions]
def asked(prompts, completions, answer): return [float(p == "2+2" and a == 4) for p, a in zip(prompts, answer)]
def everything(**given): return [len(given)] * len(given["completions"])
def raises(completions): raise KeyError("x")
def exits(completions): raise SystemExit(3)
def hangs(completions): threading.Event().wait(30)
def bad(completions): return [1.0, float("nan")]
def short(completions): return [1.0]
def words(completions): return ["much", "little"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(FUNCTIONS)
    return file


def scored(name: str, answers: list[str], **fields: Any) -> list[float]:
    settings = GrpoConfig(rewards=(name,), reward_timeout_s=20 if "hangs" not in name else 0.2)
    row = PromptRow("prompts.jsonl, line 3", "2+2", [1], fields)
    return Rewards(settings).of(row, answers)[0].tolist()


def test_functions_get_what_they_ask_for(file: Path) -> None:
    assert scored(f"{file}:length", ["a", "bcd"]) == [1, 3]
    assert scored(f"{file}:asked", ["a", "b"], answer=4, other=1) == [1, 1]
    assert scored(f"{file}:everything", ["a", "b"], answer=4, other=1) == [4, 4]


def test_modules_are_found_in_the_working_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    monkeypatch.setattr("sys.path", ["/nowhere", *__import__("sys").path])
    assert load_reward("mine:length")(["ab"]) == [2]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", "raised KeyError: 'x'"),
        ("exits", "raised SystemExit: 3"),
        ("hangs", "takes longer than 0.2 s for 2 answers"),
        ("bad", "got nan for answer 2 of 2"),
        ("short", "one number for each of 2 answers, got 1"),
        ("words", "must return a list of 2 numbers"),
    ],
)
def test_a_reward_that_fails_is_named_with_its_row(file: Path, name: str, words: str) -> None:
    with pytest.raises(TrainingError) as caught:
        scored(f"{file}:{name}", ["a", "b"])
    assert str(caught.value).startswith(f"prompts.jsonl, line 3: the reward `{file}:{name}`")
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["length", "mine:", "nowhere.py:length", "no_such_module:f", "math:no_such"])
def test_an_unknown_reward_is_an_error_that_shows_the_form(name: str) -> None:
    with pytest.raises(ConfigError, match="hint: name `module:function`"):
        load_reward(name)


def test_functions_have_names_unless_they_are_local() -> None:
    assert reward_name(scored).endswith("test_training_rewards:scored")
    with pytest.raises(ConfigError, match="top level of a file"):
        reward_name(lambda completions: [0.0])


def test_weights_are_one_a_reward() -> None:
    with pytest.raises(ConfigError, match=r"one weight for each of the 1 rewards, got 2"):
        GrpoConfig(rewards=("exact",), reward_weights=(1.0, 2.0))


@pytest.mark.parametrize(
    ("name", "fields", "right", "wrong"),
    [
        ("exact", {"answer": "abc"}, [" abc\n"], ["ab", "abcd"]),
        ("regex", {"pattern": r"^\d+$"}, ["42"], ["x42"]),
        ("numeric", {"answer": 1234.5}, ["so 2, then 1,234.5", "1.2345e3"], ["12", "none", "1234.5 or 3"]),
        ("json_schema", {"schema": {"type": "object", "required": ["a"]}}, ['{"a": 1}'], ["{}", "[", "1"]),
        ("json_schema", {"schema": '{"type": "integer"}'}, ["7"], ['"7"']),
    ],
)
def test_checks(name: str, fields: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    assert scored(name, [*right, *wrong], **fields) == [1.0] * len(right) + [0.0] * len(wrong)


def test_a_search_that_never_ends_is_an_error_that_names_row_and_pattern() -> None:
    assert matches("(a+)+$", ["a" * 40 + "b"], seconds=1) is None
    assert matches("(a+)+$", ["a" * 40, "\ud800b"]) == [True, False]
    with pytest.raises(TrainingError, match=r"line 3: the reward `regex`: searching 2 answers for `pattern` '\(a\+\)"):
        scored("regex", ["a" * 40 + "b", "a"], pattern="(a+)+$")


def test_checks_name_the_row_whose_field_is_wrong() -> None:
    with pytest.raises(DataError, match=r"line 3: the reward `regex`: `pattern` must be a regular expression, got 4"):
        scored("regex", ["a"], pattern=4)
    with pytest.raises(DataError, match=r"line 3: the reward `regex`: `pattern` must be a regular expression"):
        scored("regex", ["a"], pattern="(")
    with pytest.raises(DataError, match=r"`exact`: the row must have the field `answer`, got only `target`"):
        scored("exact", ["a"], target="a")


def test_code_is_run_with_its_tests() -> None:
    right = "Here:\n```python\ndef double(n):\n    return 2 * n\n```\nDone."
    wrong = "def double(n):\n    return n"
    assert scored("code", [right, wrong, "def double(:"], tests="assert double(4) == 8") == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "source",
    [
        "import os; os._exit(0)",
        "raise SystemExit",
        "x = bytearray(2**30)",
        "open('big', 'wb').write(b'x' * 2**22)",
        "print(open('/nowhere').read())",
        "import os; print(os.environ['HOME'])",
    ],
)
def test_code_that_ends_early_or_takes_too_much_fails(source: str) -> None:
    assert not passes_tests(source, "")


def test_code_that_never_ends_is_ended() -> None:
    before = threading.active_count()
    assert not passes_tests("while True: pass", "", seconds=1)
    assert threading.active_count() == before
