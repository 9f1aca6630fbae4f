"""Built-in rewards: 1 for an answer that passes a check, else 0.

Each takes the answers and, for each answer, the field of its row that it compares with.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from llm.errors import DataError, MissingExtraError, TrainingError
from llm.training.rewards.sandbox import SEARCH_SECONDS, matches, passes_tests

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


def exact(completions: Sequence[str], answer: Sequence[Any]) -> list[float]:
    """Compares the whole answer with the field `answer`, without white space around them."""
    pairs = zip(completions, answer, strict=True)
    return [float(given.strip() == str(wanted).strip()) for given, wanted in pairs]


def regex(completions: Sequence[str], pattern: Sequence[str]) -> list[float]:
    """Looks for the regular expression of the field `pattern` in the answer.

    Searches run in a process of their own: some expressions take years for some texts, and Python can't end a search.
    """
    wanted = pattern[0]
    _check_pattern(completions, pattern)
    found = matches(wanted, completions)
    if found is None:
        raise TrainingError(
            f"searching {len(completions)} answers for `pattern` {wanted!r} takes longer than {SEARCH_SECONDS} s\n"
            "hint: repetitions within repetitions, such as `(a+)+`, take exponential time"
        )
    return [float(value) for value in found]


def _check_pattern(completions: Sequence[str], pattern: Sequence[Any]) -> None:  # noqa: ARG001 - as the rewards
    try:
        re.compile(pattern[0])
    except (re.error, TypeError) as error:
        raise DataError(f"`pattern` must be a regular expression, got {pattern[0]!r}: {error}") from None


def numeric(completions: Sequence[str], answer: Sequence[Any]) -> list[float]:
    """Compares the last number of the answer with the field `answer`, to a relative error of 1e-6."""
    return [_equals(given, wanted) for given, wanted in zip(completions, answer, strict=True)]


def _equals(given: str, wanted: Any) -> float:
    target, last = _last_number(str(wanted)), _last_number(given)
    if target is None:
        raise DataError(f"`answer` must be a number, got {wanted!r}")
    return float(last is not None and math.isclose(last, target, rel_tol=1e-6))


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def json_schema(completions: Sequence[str], schema: Sequence[Any]) -> list[float]:
    """Checks that the answer is JSON that the schema of the field `schema` allows, an object or its text."""
    try:
        import jsonschema_rs
    except ImportError:
        raise MissingExtraError(
            "the check `json_schema` needs `jsonschema-rs`\nhint: pip install 'llm-oxide[rewards]'"
        ) from None
    try:
        wanted = json.loads(schema[0]) if isinstance(schema[0], str) else schema[0]
    except ValueError as error:
        raise DataError(f"`schema` must be a JSON schema or its text, got {schema[0]!r}: {error}") from None
    try:
        validator = jsonschema_rs.validator_for(wanted)
    except jsonschema_rs.ValidationError as error:
        raise DataError(f"`schema` must be a JSON schema, got {wanted!r}: {error.message}") from None
    return [float(_is_valid(given, validator)) for given in completions]


def _is_valid(text: str, validator: Any) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return bool(validator.is_valid(value))


def code(completions: Sequence[str], tests: Sequence[str]) -> list[float]:
    """Runs the answer's Python, or the last fenced block of it, and then the field `tests`, such as `assert f(2) == 4`.

    See `sandbox` for the limits, and for what they don't protect from.
    """
    _check_tests(completions, tests)
    return [float(passes_tests(_program(given), wanted)) for given, wanted in zip(completions, tests, strict=True)]


def _check_tests(completions: Sequence[str], tests: Sequence[Any]) -> None:  # noqa: ARG001 - as the rewards
    if not isinstance(tests[0], str):
        raise DataError(f"`tests` must be a text of Python, got {tests[0]!r}")


def _program(text: str) -> str:
    found = _FENCE.findall(text)
    return str(found[-1]) if found else text


CHECKS: dict[str, Callable[..., list[float]]] = {
    "exact": exact,
    "regex": regex,
    "numeric": numeric,
    "json_schema": json_schema,
    "code": code,
}
# What can be known of a row without an answer, by reward; `exact` takes everything.
ROW_CHECKS: dict[str, Callable[..., object]] = {
    "regex": _check_pattern,
    "numeric": numeric,
    "json_schema": json_schema,
    "code": _check_tests,
}
