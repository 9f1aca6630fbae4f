"""The settings of an evaluation."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from llm.errors import ConfigError
from llm.settings.merge import validated
from llm.settings.names import suggest


class EvaluationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How texts and samples are presented to a model."""

    stride: (
        Annotated[int, Meta(ge=1, description="Number of new tokens in each window of a text; null: a whole context.")]
        | None
    ) = None
    shots: Annotated[
        int,
        Meta(ge=0, description="Number of solved samples before each sample, taken from the beginning of the file."),
    ] = 0
    limit: Annotated[int, Meta(ge=1, description="Largest number of samples of each file; null: all.")] | None = None
    separator: Annotated[str, Meta(description="Text between a context and its answer.")] = " "
    until: Annotated[tuple[str, ...], Meta(description="Texts that end a generated answer.")] = ("\n",)
    max_answer_tokens: Annotated[int, Meta(ge=1, description="Largest number of tokens in a generated answer.")] = 256


def evaluation_config(**settings: Any) -> EvaluationConfig:
    """Builds an `EvaluationConfig` from its fields as keywords.

    Raises:
        ConfigError: An unknown name (the nearest valid one is named), a wrong type or a value out of range.
    """
    for name in settings.keys() - set(EvaluationConfig.__struct_fields__):
        raise ConfigError(f"unknown setting `{name}`; {suggest(name, EvaluationConfig.__struct_fields__)}")
    return validated(EvaluationConfig(**settings))
