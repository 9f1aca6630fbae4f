"""The prompts of a new run: read, encoded as serving encodes them, and checked against the context."""

import math
from collections.abc import Collection
from typing import Any

import msgspec

from llm.checkpoint import Run
from llm.data import PromptDataModule
from llm.data.batch import PromptRow
from llm.data.prompts import read_prompts
from llm.errors import DataError, LLMError
from llm.inference.answer_format import AnswerFormat, answer_format
from llm.inference.chat_prompt import chat_ids
from llm.models.device import resolve_device
from llm.settings.run import RunConfig
from llm.tokenization import BaseTokenizer, frame_of
from llm.training.fine_tuning import chosen
from llm.training.rewards import Rewards

# Policy gradients are noisier than those of given answers: a twentieth of the rate of `llm sft`, which is 0.06 / width.
_RATE_BY_WIDTH = 0.003
_HIGHEST_RATE = 1e-4
_ADAPTER_RATE = 10
_PROMPTS = 16
_STEPS = 100
_PASS_TOKENS = 8192


def prepare_prompts(config: RunConfig, given: Collection[str], run: Run, tokenizer: BaseTokenizer) -> RunConfig:
    """Stores the prompts of a run, and returns `config` with what suits them where nothing was given.

    Raises:
        ConfigError: A reward can't be found.
        DataError: A row is wrong, or a prompt leaves no room for an answer; the message names file and line.
    """
    rewards = Rewards(config.grpo)
    train, held_out = (_encoded(rows, config, tokenizer) for rows in read_prompts(config.data))
    if not train:
        raise DataError(
            f"no prompt leaves room for an answer of {config.grpo.max_answer_tokens:,} tokens\n"
            "hint: lower `grpo.max_answer_tokens`, or add prompts that are shorter"
        )
    for row in (*train, *held_out):
        rewards.check(row)
    PromptDataModule.store(run.data, train, held_out)
    config = chosen(config, given, "data", validation_fraction=0.05)
    num_prompts = len(PromptDataModule(run.data, config.data).train_dataset())
    longest = max(len(row.ids) for row in (*train, *held_out)) + config.grpo.max_answer_tokens
    config = chosen(config, given, "data", context_length=longest)
    if resolve_device(config.training.device).type == "cpu":
        # There the engine computes in fp32, and so does training in bf16 but for its gradients.
        config = chosen(config, given, "training", precision="float32")
    return _with_steps(_with_rate(config, given), given, num_prompts)


def _with_rate(config: RunConfig, given: Collection[str]) -> RunConfig:
    rate = min(_HIGHEST_RATE, _RATE_BY_WIDTH / config.model.hidden_size)
    rate *= 1 if config.lora.rank is None else _ADAPTER_RATE
    return chosen(config, given, "optimizer", learning_rate=float(f"{rate:.2g}"), schedule="constant", weight_decay=0.0)


def _with_steps(config: RunConfig, given: Collection[str], num_prompts: int) -> RunConfig:
    """Returns `config` with a batch, passes that fit in memory, steps, and intervals between two draws."""
    config = chosen(config, given, "training", batch_size=min(num_prompts, _PROMPTS))
    batch, draws = config.training.batch_size, config.grpo.passes
    tokens = batch * config.grpo.group_size * config.context_length
    wanted = min(batch, math.ceil(tokens / _PASS_TOKENS))
    fitting = next(number for number in range(wanted, batch + 1) if batch % number == 0)
    config = chosen(config, given, "training", gradient_accumulation_steps=fitting)
    if not {"training.epochs", "training.max_steps"} & set(given):
        config = chosen(config, given, "training", max_steps=_STEPS * draws)
    steps = config.training.max_steps or config.training.epochs * max(1, num_prompts // batch) * draws
    between = max(1, steps // (10 * draws)) * draws
    return chosen(
        config, given, "training", validate_every=between, checkpoint_every=between, log_every=max(1, steps // 100)
    )


def _encoded(rows: list[PromptRow], config: RunConfig, tokenizer: BaseTokenizer) -> list[PromptRow]:
    form = answer_format(tokenizer)
    found = [msgspec.structs.replace(row, ids=_ids(row, tokenizer, form)) for row in rows]
    room = min(config.context_length, config.model.max_position_embeddings) - config.grpo.max_answer_tokens
    too_long = [row for row in found if len(row.ids) > room]
    if too_long and config.data.too_long != "drop":
        first = too_long[0]
        raise DataError(
            f"{first.where}: the prompt has {len(first.ids):,} tokens, beside an answer of "
            f"{config.grpo.max_answer_tokens:,} there is room for {max(0, room):,}; {len(too_long):,} of "
            f"{len(found):,} prompts are too long\n"
            "hint: `data.too_long=drop` leaves them out, or lower `grpo.max_answer_tokens`"
        )
    return [row for row in found if len(row.ids) <= room]


def _ids(row: PromptRow, tokenizer: BaseTokenizer, form: AnswerFormat) -> list[int]:
    """Returns a prompt's ids; without a chat template, those of the plain text."""
    options: dict[str, Any] = {}
    if tools := row.fields.get("tools"):
        options["tools"] = tools
    try:
        if tokenizer.chat_template is None and isinstance(row.prompt, str):
            return [*frame_of(tokenizer)[0], *tokenizer.encode(row.prompt)]
        return chat_ids(tokenizer, row.messages, options, form)  # type: ignore[arg-type]
    except LLMError as error:
        raise DataError(f"{row.where}: the prompt can't be encoded: {error}") from error
