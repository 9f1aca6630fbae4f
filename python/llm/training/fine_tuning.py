"""The settings that a fine-tuning run chooses for itself, from its rows and its model."""

import math
from collections.abc import Collection
from typing import Any

import msgspec

from llm.data import ChatDataModule, PreferenceDataModule
from llm.settings.run import RunConfig
from llm.training.assembly import build_rows
from llm.training.sizes import passes_of_batch

# Passes over the rows: more of them teach facts, and a larger model learns them by heart sooner.
_EPOCHS = 3
# The rate for a width of 1; wider models want a lower one, as 1e-4 for 576 and 1.5e-5 for 4096.
_RATE_BY_WIDTH = 0.06
_HIGHEST_RATE = 3e-4
# Adapters learn this much faster.
_ADAPTER_RATE = 10
# A preference is learnt from the difference of two answers, far from which a higher rate goes astray.
_PREFERENCE_RATE = 0.1
_PREFERENCE_EPOCHS = 1
# Steps that a pass over the rows should have, and the tokens of a step that this may lead to.
_STEPS_PER_EPOCH = 32
_STEP_TOKENS = (512, 65_536)
# A sample holds a few rows at least, so that packing fills it.
_SHORTEST_CONTEXT = 256
_CONTEXT_MULTIPLE = 64
# Tokens of one forward and backward pass; more need memory and save no time.
_PASS_TOKENS = 8192


def before_encoding(config: RunConfig, given: Collection[str]) -> RunConfig:
    """Returns `config` with the choices that don't depend on the rows: packing, and how much is held out."""
    packs = config.data.kind == "chat" and config.data.sampling == "windows"
    return chosen(config, given, "data", packing=packs, validation_fraction=0.05)


def after_encoding(config: RunConfig, given: Collection[str], data: ChatDataModule) -> RunConfig:
    """Returns `config` with context, batch, steps, optimizer and cadence for the encoded rows."""
    longest = math.ceil((data.longest_row - 1) / _CONTEXT_MULTIPLE) * _CONTEXT_MULTIPLE
    context = min(config.model.max_position_embeddings, max(_SHORTEST_CONTEXT, longest))
    config = chosen(config, given, "data", context_length=context)
    rate = min(_HIGHEST_RATE, _RATE_BY_WIDTH / config.model.hidden_size)
    rate *= 1 if config.lora.rank is None else _ADAPTER_RATE
    rate *= _PREFERENCE_RATE if isinstance(data, PreferenceDataModule) else 1
    config = chosen(
        config,
        given,
        "optimizer",
        learning_rate=float(f"{rate:.2g}"),
        schedule="linear",
        min_learning_rate_ratio=0.0,
        weight_decay=0.01,
    )
    if not {"training.epochs", "training.max_steps"} & set(given):
        epochs = _PREFERENCE_EPOCHS if isinstance(data, PreferenceDataModule) else _EPOCHS
        config = chosen(config, given, "training", epochs=epochs)
    return _batched(config, given, data)


def _batched(config: RunConfig, given: Collection[str], data: ChatDataModule) -> RunConfig:
    """Returns `config` with a batch of as many samples as hold the tokens of a step."""
    num_samples = build_rows(config, data.directory).train_dataset().epoch_samples
    fewest, most = _STEP_TOKENS
    step_tokens = min(most, max(fewest, data.num_train_tokens / _STEPS_PER_EPOCH))
    sample_tokens = data.num_train_tokens / max(1, num_samples)
    batch = max(1, min(num_samples, round(step_tokens / sample_tokens)))
    config = chosen(config, given, "training", batch_size=batch)
    batch = config.training.batch_size
    passes = math.ceil(batch * sample_tokens / _PASS_TOKENS)
    config = chosen(config, given, "training", gradient_accumulation_steps=passes_of_batch(batch, passes))
    steps = config.training.max_steps or config.training.epochs * max(1, num_samples // batch)
    return chosen(config, given, "training", validate_every=max(1, steps // 6), log_every=max(1, steps // 60))


def chosen(config: RunConfig, given: Collection[str], section: str, **values: Any) -> RunConfig:
    """Returns `config` with those of `values` that were not given."""
    values = {name: value for name, value in values.items() if f"{section}.{name}" not in given}
    changed = msgspec.structs.replace(getattr(config, section), **values)
    return msgspec.structs.replace(config, **{section: changed})
