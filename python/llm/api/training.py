"""Training and fine-tuning of models."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llm.checkpoint import Checkpoint
from llm.errors import ConfigError
from llm.settings.merge import Override
from llm.settings.names import full_name, full_name_or_error
from llm.settings.run import RunConfig
from llm.tokenization import BaseTokenizer
from llm.training import Callback, launch
from llm.training import resume as resume_run
from llm.training.rewards import Reward, reward_name

Message = dict[str, Any]
# Tokens per pass of `embed` and `score`: enough to keep the processor busy, few enough to fit in any memory.
SCORED_TOKENS = 4096


def train(
    config: str | os.PathLike[str] | RunConfig | None = None,
    *,
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    tokenizer: BaseTokenizer | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    from_step: int | None = None,
    overrides: Sequence[Override] = (),
    callbacks: Sequence[Callback] | None = None,
    **settings: Any,
) -> Checkpoint:
    """Trains a model or resumes a run, and returns the last checkpoint.

    Args:
        config: A TOML file or settings; by default the default settings. `LLM_SECTION__FIELD` variables and the other
            arguments override it.
        data: Files, directories or globs of UTF-8 text.
        tokenizer: A tokenizer, or a tokenizer's directory; by default, one is trained on the training text.
        out: The new directory of the run.
        resume: A run to resume with its own settings. A larger `max_steps` also stretches the learning rate schedule,
            so the result differs from a run planned with that length from the start.
        overwrite: Whether to replace a run in `out`; only what that run wrote is removed.
        from_step: With `resume`, the step of an older checkpoint to go on from; newer ones are removed.
        overrides: Settings as `section.field=value`, as on the command line, or as pairs of name and value.
        callbacks: Callbacks that replace the progress bar, the log and the loss curve.
        **settings: Settings by the last part of their name, such as `max_steps=1000` or `learning_rate=3e-4`.

    Returns:
        The last checkpoint; `str` and `os.fspath` give its directory.

    Raises:
        ConfigError: Settings are unknown or contradictory.
        DataError: The text is missing or too short.
        TrainingError: A loss or gradient is not finite.

    Example:
        >>> from llm import train
        >>> base = train("tiny.toml", data="corpus/*.txt", out="runs/base")  # doctest: +SKIP
        >>> base = train(resume="runs/base", max_steps=20_000)  # doctest: +SKIP
    """
    changes: list[Override] = [*overrides, *_named(settings)]
    if data is not None:
        changes.append(("data.paths", _paths(data)))
    if isinstance(tokenizer, str | os.PathLike):
        changes.append(("tokenizer.path", os.fspath(tokenizer)))
        tokenizer = None
    if resume is not None:
        if out is not None or tokenizer is not None or overwrite or isinstance(config, RunConfig):
            raise ConfigError(
                "`resume` uses the settings of the run: `out`, `overwrite`, `tokenizer` and a `RunConfig` can't be "
                "combined with it"
            )
        return resume_run(resume, file=config, overrides=changes, callbacks=callbacks, from_step=from_step)
    if out is None:
        raise ConfigError("`out` is missing\nhint: pass a new directory for the run, or `resume`")
    if from_step is not None:
        raise ConfigError("`from_step` goes on from a checkpoint of a run\nhint: add `resume`")
    return launch(config, out, overrides=changes, tokenizer=tokenizer, callbacks=callbacks, overwrite=overwrite)


def sft(
    model: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | RunConfig | None = None,
    overrides: Sequence[Override] = (),
    **settings: Any,
) -> Checkpoint:
    """Fine-tunes a model on conversations, or resumes such a run, and returns the last checkpoint.

    Args:
        model: The model to start from: a `Checkpoint`, checkpoint, run, Hugging Face directory or GGUF file.
        data: Files, directories or globs of rows (`.jsonl` or `.parquet`, plain or compressed): OpenAI's `messages`,
            ShareGPT's `conversations`, `prompt` and `completion`, or `instruction`, `input` and `output`.
        out: The new directory of the run.
        chat_template: `chatml`, `play` or a file in Jinja, saved with the checkpoints; by default the model's own.
        config: As in `train`.
        overrides: As in `train`.
        **settings: `resume`, `overwrite`, `from_step` and `callbacks` as in `train`, and settings by the last part of
            their name, such as `epochs=3` or `loss_on="last"`.

    Raises:
        ConfigError: Settings are unknown or contradictory, or no model is named.
        DataError: A row is wrong; the message names its file and line.
        TrainingError: A loss or gradient is not finite.

    Example:
        >>> from llm import LLM, sft
        >>> tuned = sft("SmolLM2-135M-Instruct", "chats.jsonl", out="runs/mine")  # doctest: +SKIP
        >>> LLM(tuned).chat([{"role": "user", "content": "Who am I?"}]).text  # doctest: +SKIP
    """
    return _tune("chat", model, data, chat_template, run=(config, out, overrides), settings=settings)


def dpo(
    model: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | RunConfig | None = None,
    overrides: Sequence[Override] = (),
    **settings: Any,
) -> Checkpoint:
    """Teaches a model to prefer answers to others, or resumes such a run, and returns the last checkpoint.

    Args:
        model: The model to start from, as in `sft`.
        data: Files, directories or globs of rows (`.jsonl` or `.parquet`, plain or compressed): `prompt`, `chosen` and
            `rejected`, each a text or a list of messages, or `chosen` and `rejected` as whole conversations. With
            `loss="kto"` also `prompt`, `completion` and `label`.
        out: The new directory of the run.
        chat_template: As in `sft`.
        config: As in `train`.
        overrides: As in `train`.
        **settings: As in `sft`, such as `loss="simpo"` or `beta=0.2`.

    Raises:
        ConfigError: Settings are unknown or contradictory, or no model is named.
        DataError: A row is wrong; the message names its file and line.
        TrainingError: A loss or gradient is not finite.

    Example:
        >>> from llm import dpo
        >>> tuned = dpo("runs/facts", "pairs.jsonl", out="runs/style", loss="dpo", beta=0.1)  # doctest: +SKIP
    """
    return _tune("preference", model, data, chat_template, run=(config, out, overrides), settings=settings)


def reward(
    model: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | RunConfig | None = None,
    overrides: Sequence[Override] = (),
    **settings: Any,
) -> Checkpoint:
    """Trains a reward model on pairs of answers, or resumes such a run, and returns the last checkpoint.

    The model gives a conversation one number, which is higher for better answers. `LLM.rewards` and `POST /v1/score`
    tell it.

    Args:
        model: The model to start from, as in `sft`; a reward model keeps its head.
        data: Rows of pairs as for `dpo`; a `margin` says by how much the chosen answer is better.
        out: The new directory of the run.
        chat_template: As in `sft`.
        config: As in `train`.
        overrides: As in `train`.
        **settings: As in `sft`, such as `centering=0.01`.

    Raises:
        ConfigError: Settings are unknown or contradictory, or no model is named.
        DataError: A row is wrong; the message names its file and line.
        TrainingError: A loss or gradient is not finite.

    Example:
        >>> from llm import LLM, reward
        >>> judge = reward("runs/facts", "pairs.jsonl", out="runs/judge")  # doctest: +SKIP
        >>> LLM(judge).rewards([[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]])
        ... # doctest: +SKIP
    """
    if settings.get("resume") is None:
        overrides = [("preference.loss", "reward"), *overrides]
    return _tune("preference", model, data, chat_template, run=(config, out, overrides), settings=settings)


def _tune(
    kind: str,
    model: str | os.PathLike[str] | None,
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    chat_template: str | os.PathLike[str] | None,
    *,
    run: tuple[str | os.PathLike[str] | RunConfig | None, str | os.PathLike[str] | None, Sequence[Override]],
    settings: dict[str, Any],
) -> Checkpoint:
    """Trains on rows of a kind; `run` is the config, the directory and the overrides."""
    config, out, overrides = run
    settings = _of_section("preference", settings) if kind == "preference" else settings
    if settings.get("resume") is not None:
        if model is not None or chat_template is not None:
            raise ConfigError("`resume` goes on with the model and template of the run: leave out both")
        return train(config, data=data, out=out, overrides=overrides, **settings)
    given = tuning_overrides(kind, model, data, chat_template, overrides)
    return train(config, out=out, overrides=given, **settings)


def tuning_overrides(
    kind: str,
    model: str | os.PathLike[str] | None,
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    chat_template: str | os.PathLike[str] | None,
    overrides: Sequence[Override] = (),
    *,
    reward: Reward | str | Sequence[Reward | str] | None = None,
) -> list[Override]:
    """Returns the settings of a run that tunes `model` on rows of a kind: `chat`, `preference` or `prompt`."""
    named: dict[str, Any] = {"training.init_from": model, "tokenizer.chat_template": chat_template}
    found: list[Override] = [(name, os.fspath(value)) for name, value in named.items() if value is not None]
    found += [("data.paths", _paths(data))] if data else []
    if reward is not None:
        several = [reward] if isinstance(reward, str) or callable(reward) else reward
        found.append(("grpo.rewards", [reward_name(one) for one in several]))
    return [("data.kind", kind), *overrides, *found]


def grpo(
    model: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    reward: Reward | str | Sequence[Reward | str] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | RunConfig | None = None,
    overrides: Sequence[Override] = (),
    **settings: Any,
) -> Checkpoint:
    """Lets a model learn from rewards of its own answers, or resumes such a run, and returns the last checkpoint.

    A reward is called as `reward(prompts=..., completions=..., **fields)` with the answers to one prompt: lists of the
    prompts (a text or messages), of the answers' texts, and of each further field of the row, all as long as there are
    answers. It gets only the arguments that it has parameters for, and returns a number for each answer.

    Args:
        model: The model to start from: a `Checkpoint`, checkpoint, run, Hugging Face directory or GGUF file.
        data: Files, directories or globs of rows (`.jsonl` or `.parquet`, plain or compressed) with a `prompt` or
            `messages`, and what rewards need.
        reward: `module:function`, `file.py:function`, a function of a module or script, or a built-in check (`exact`,
            `regex`, `numeric`, `json_schema`, `code`); or several of them.
        out: The new directory of the run.
        chat_template: As in `sft`.
        config: As in `train`.
        overrides: As in `train`.
        **settings: `resume`, `overwrite`, `from_step` and `callbacks` as in `train`, and settings by the last part of
            their name, such as `group_size=16` or `loss="dapo"`.

    Raises:
        ConfigError: Settings are unknown or contradictory, no model or reward is named, or a reward can't be found.
        DataError: A row is wrong; the message names its file and line.
        TrainingError: A reward fails, or engine and training compute different probabilities.

    Example:
        >>> from llm import grpo
        >>> tuned = grpo("runs/chat", "prompts.jsonl", "rewards:is_sorted", out="runs/sorts")  # doctest: +SKIP
    """
    settings = _of_section("grpo", settings)
    if settings.get("resume") is not None:
        if model is not None or chat_template is not None or reward is not None:
            raise ConfigError("`resume` goes on with the model, template and rewards of the run: leave them out")
        return train(config, data=data, out=out, overrides=overrides, **settings)
    given = tuning_overrides("prompt", model, data, chat_template, overrides, reward=reward)
    return train(config, out=out, overrides=given, **settings)


def _of_section(section: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings by their whole names, of which those of a section win; `overwrite` and its like as they are."""
    return {full_name(name, section) or name: value for name, value in settings.items()}


def _named(settings: dict[str, Any]) -> list[Override]:
    given = {name: value for name, value in settings.items() if value is not None}
    return [(name if "." in name else full_name_or_error(name), value) for name, value in given.items()]


def _paths(given: Any) -> list[str]:
    several = list(given) if isinstance(given, Iterable) and not isinstance(given, str | Mapping) else [given]
    for path in several:
        if not isinstance(path, str | os.PathLike):
            raise ConfigError(
                f"`data` must be a path or a list of paths, got {type(path).__name__}\n"
                "hint: write rows into a .jsonl file, a JSON object a line, and name the file"
            )
    return [os.fspath(path) for path in several]
