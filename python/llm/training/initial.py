"""Runs that start from a checkpoint: its config, tokenizer and weights, and what contradicts them."""

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from llm.checkpoint import Checkpoint, resolve
from llm.errors import ConfigError
from llm.settings.merge import Override, load_run_config, raw_setting
from llm.settings.model import ExpertsConfig, ModelConfig
from llm.settings.run import RunConfig, TokenizerConfig
from llm.tokenization import BaseTokenizer, choose_chat_template, load_tokenizer

# Settings of a model that its weights don't depend on.
_FREE = {"dropout", "attention_dropout", "initializer_range", "family"}


def load_start_config(
    config: RunConfig | str | os.PathLike[str] | None, overrides: Sequence[Override]
) -> tuple[RunConfig, Checkpoint | None]:
    """Merges the settings of a new run; with `training.init_from`, the model's are those of that checkpoint.

    Raises:
        ConfigError: Settings are unknown or contradict each other or the checkpoint.
        CheckpointError: There is no checkpoint.
    """
    base, file = (config, None) if isinstance(config, RunConfig) else (None, config)
    path = raw_setting("training.init_from", file, overrides, base=base)
    if not isinstance(path, str):
        return load_run_config(file, overrides, base=base), None
    checkpoint = resolve(path)
    if not checkpoint.is_decoder:
        raise ConfigError(f"`training.init_from` must name a decoder's checkpoint, got a {checkpoint.architecture}")
    if checkpoint.is_reward_model and raw_setting("preference.loss", file, overrides, base=base) != "reward":
        raise ConfigError(
            f"`training.init_from` must name a model that writes text, got a {checkpoint.architecture}\n"
            "hint: `llm reward` goes on with a reward model"
        )
    own = checkpoint.config
    base = base or RunConfig()
    _check_same(_given(base.model), own, path)
    merged = load_run_config(file, overrides, base=msgspec.structs.replace(base, model=own))
    _check_same(msgspec.structs.asdict(merged.model), own, path)
    if merged.training.task != "lm":
        raise ConfigError(f"`training.init_from` needs `training.task=lm`, got `{merged.training.task}`")
    training = msgspec.structs.replace(merged.training, init_from=str(checkpoint))
    return msgspec.structs.replace(merged, training=training), checkpoint


def initial_tokenizer(
    checkpoint: Checkpoint, config: TokenizerConfig, given: BaseTokenizer | None = None
) -> BaseTokenizer:
    """Returns the tokenizer of a checkpoint, with the chat template that `config` asks for.

    Raises:
        ConfigError: Another tokenizer is asked for, or the checkpoint has none.
    """
    asked = given or (load_tokenizer(config.path) if config.path is not None else None)
    if not checkpoint.has_tokenizer:
        if asked is None:
            raise ConfigError(
                f"{checkpoint} has no tokenizer\nhint: name the one it was trained with: `--tokenizer DIR`"
            )
        return asked
    tokenizer = checkpoint.tokenizer()
    if asked is not None and asked.token_bytes() != tokenizer.token_bytes():
        raise ConfigError(
            f"the tokenizer must be the one of {checkpoint}, whose embeddings stand for its entries, got another\n"
            "hint: leave out `--tokenizer`"
        )
    defaults = TokenizerConfig()
    for name in ("kind", "vocab_size", "pattern"):
        if config.path is None and getattr(config, name) != getattr(defaults, name):
            raise ConfigError(
                f"`tokenizer.{name}` can't be set: the tokenizer is the one of {checkpoint}\n"
                f"hint: leave out `tokenizer.{name}` or `training.init_from`"
            )
    if config.chat_template is not None:
        choose_chat_template(tokenizer, config.chat_template)
    return tokenizer


def _given(model: ModelConfig) -> dict[str, Any]:
    """The settings that differ from the defaults."""
    defaults = ModelConfig()
    values = msgspec.structs.asdict(model)
    return {name: value for name, value in values.items() if value != getattr(defaults, name)}


def _check_same(values: dict[str, Any], own: ModelConfig, path: str) -> None:
    for name, value in values.items():
        saved = getattr(own, name)
        if name not in _FREE and _without_weights(value) != _without_weights(saved):
            raise ConfigError(
                f"`model.{name}` must be {saved!r}, as in the checkpoint {path}, got {value!r}\n"
                f"hint: leave out `model.{name}`, or `training.init_from` to train a new model"
            )


def _without_weights(value: Any) -> Any:
    """A setting as it is, but experts without the weights of their losses."""
    if not isinstance(value, ExpertsConfig):
        return value
    return msgspec.structs.replace(value, load_balancing_weight=0.0, router_z_weight=0.0)
