"""Loads rewards by their names, and calls them with limits."""

import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm.data.batch import PromptRow
from llm.errors import ConfigError, DataError, LLMError, TrainingError
from llm.settings.grpo import GrpoConfig
from llm.training.rewards.checks import CHECKS, ROW_CHECKS

Reward = Callable[..., Sequence[float]]
_FORM = "hint: name `module:function`, `file.py:function`, or one of the built-in checks"


class Rewards:
    """The rewards of a run.

    Args:
        settings: Names, weights and time limit.

    Raises:
        ConfigError: A reward can't be found.
    """

    def __init__(self, settings: GrpoConfig) -> None:
        self.weights = np.array(settings.weights)
        self.timeout_s = settings.reward_timeout_s
        self.functions = {name: load_reward(name) for name in settings.rewards}
        short = [name.rpartition(":")[2] for name in settings.rewards]
        self.names = tuple(short if len(set(short)) == len(short) else settings.rewards)

    def of(self, row: PromptRow, answers: Sequence[str]) -> NDArray[np.float64]:
        """Returns what each reward gives each answer to a prompt, `[rewards, answers]`.

        Raises:
            DataError: The row lacks a field that a reward needs.
            TrainingError: A reward raises, takes too long, or returns something else than one finite number an answer.
        """
        return np.array([self._called(name, row, answers) for name in self.functions])

    def check(self, row: PromptRow) -> None:
        """Checks that a row has what the rewards need, before an answer to it is drawn; no function of the user runs.

        Raises:
            DataError: The row lacks a field, or has one that a built-in check can't take.
        """
        for name, function in self.functions.items():
            try:
                arguments = _accepted(function, _given(row, [""]), row.fields)
                if name in ROW_CHECKS:
                    ROW_CHECKS[name](**arguments)
            except LLMError as error:
                raise type(error)(f"{row.where}: the reward `{name}`: {error}") from error

    def _called(self, name: str, row: PromptRow, answers: Sequence[str]) -> list[float]:
        function = self.functions[name]
        try:
            arguments = _accepted(function, _given(row, answers), row.fields)
            found = _within(self.timeout_s, lambda: function(**arguments))
        except LLMError as error:
            raise type(error)(f"{row.where}: the reward `{name}`: {error}") from error
        except TimeoutError:
            raise TrainingError(
                f"{row.where}: the reward `{name}` takes longer than {self.timeout_s:g} s for {len(answers)} answers\n"
                "hint: raise `grpo.reward_timeout_s`, or limit the time within the function"
            ) from None
        except (Exception, SystemExit) as error:
            raise TrainingError(f"{row.where}: the reward `{name}` raised {type(error).__name__}: {error}") from error
        return _checked(found, len(answers), f"{row.where}: the reward `{name}`")


def _given(row: PromptRow, answers: Sequence[str]) -> dict[str, Any]:
    """Returns all that a reward may ask for, with a value for each answer."""
    values: dict[str, Any] = {"prompts": row.prompt, "completions": None} | row.fields
    return {key: [value] * len(answers) for key, value in values.items()} | {"completions": list(answers)}


def load_reward(name: str) -> Reward:
    """Returns the function that a setting names.

    Modules are also looked for in the working directory.

    Raises:
        ConfigError: There is no such check, module or function.
    """
    if name in CHECKS:
        return CHECKS[name]
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute:
        raise ConfigError(f"there is no check called {name!r}, only {', '.join(CHECKS)}\n{_FORM}")
    module = _file_module(Path(place)) if place.endswith(".py") else _module(place)
    found = getattr(module, attribute, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ConfigError(f"{place} has no function {attribute!r}, only {', '.join(known) or 'none'}\n{_FORM}")
    return found  # type: ignore[no-any-return]


def reward_name(function: Reward | str) -> str:
    """Returns the name by which a run, resumed elsewhere, finds a reward again: one with the whole path of a file.

    Raises:
        ConfigError: It is no function of a module or of a script's file.
    """
    if isinstance(function, str):
        file_name, colon, own = function.rpartition(":")
        return f"{Path(file_name).resolve()}{colon}{own}" if file_name.endswith(".py") else function
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<locals>")
    file = getattr(sys.modules.get("__main__"), "__file__", None) if module == "__main__" else None
    place = module if module != "__main__" else file and str(Path(file).resolve())
    if place is None or not name.isidentifier():
        raise ConfigError(
            f"a reward must be a function of a module or a script's file, so that a resumed run finds it, got {name!r} "
            f"of {module}\nhint: write it at the top level of a file"
        )
    return f"{place}:{name}"


def _module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"the module of a reward, {name!r}, can't be imported: {type(error).__name__}: {error}\n{_FORM}"
        ) from error


def _file_module(file: Path) -> ModuleType:
    name = f"llm_reward_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"the file of a reward is missing: {file}\n{_FORM}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{file} can't be imported: {type(error).__name__}: {error}") from error
    return module


def _accepted(function: Reward, given: Mapping[str, Any], fields: Collection[str]) -> Mapping[str, Any]:
    """Returns the arguments that a function has parameters for: all of them if it has `**`.

    Raises:
        DataError: It needs one that is not given.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise DataError(f"its parameters can't be read: {error}\nhint: call it in a function of Python") from None
    for one in parameters:
        is_named = one.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        if is_named and one.default is inspect.Parameter.empty and one.name not in given:
            found = ", ".join(f"`{name}`" for name in fields) or "none"
            raise DataError(f"the row must have the field `{one.name}`, got only {found}")
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
        return given
    return {one.name: given[one.name] for one in parameters if one.name in given}


def _within(seconds: float, work: Callable[[], Any]) -> Any:
    """Returns the result of `work`, which runs in a thread of its own, as nothing else can be left behind.

    Raises:
        TimeoutError: It takes longer.
    """
    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            outcome.append((True, work()))
        except BaseException as error:  # noqa: BLE001 (raised again by the caller)
            outcome.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError
    is_done, value = outcome[0]
    if not is_done:
        raise value
    return value


def _checked(found: Any, count: int, who: str) -> list[float]:
    # Keys of a dict and characters of a text could be read as numbers too.
    if isinstance(found, Mapping | str | bytes):
        raise TrainingError(f"{who} must return a list of {count} numbers, got a {type(found).__name__}: {found!r:.99}")
    try:
        values = [float(value) for value in found]
    except (TypeError, ValueError, OverflowError) as error:
        raise TrainingError(f"{who} must return a list of {count} numbers, got {found!r:.200}: {error}") from None
    if len(values) != count:
        raise TrainingError(f"{who} must return one number for each of {count} answers, got {len(values)}")
    for number, value in enumerate(values, 1):
        if not math.isfinite(value):
            raise TrainingError(f"{who} must return finite numbers, got {value} for answer {number} of {count}")
    return values
