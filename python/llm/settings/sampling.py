"""The settings of one request, in the words of OpenAI's API and of vLLM."""

from collections.abc import Collection
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from llm.errors import InvalidArgumentError
from llm.settings.fields import declared
from llm.settings.structured import StructuredOutputs

TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Temperature: TypeAlias = Annotated[
    float, Meta(ge=0.0, le=100.0, description="Randomness; 0 is greedy, 1 the model's own distribution.")
]
TopK: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1, description="Likeliest tokens to keep; 0: all.")]
TopP: TypeAlias = Annotated[
    float, Meta(gt=0.0, le=1.0, description="Probability mass of the likeliest tokens to keep, in (0, 1].")
]
Share: TypeAlias = Annotated[float, Meta(ge=0.0, le=1.0)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2.0, le=2.0)]
NumTokens: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
NumLogprobs: TypeAlias = Annotated[int, Meta(ge=0, le=20)]
Bias: TypeAlias = Annotated[float, Meta(ge=-100.0, le=100.0)]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides which token comes next, and when to stop.

    `allowed_token_ids`, `logit_bias` and penalties come first, then `temperature`, then `top_k`, `top_p`, `min_p` and
    `typical_p`, each on what the one before left.
    The same `seed` gives the same tokens whatever else the engine runs; without one, a fresh seed is drawn.

    Raises:
        InvalidArgumentError: An empty stop string, or `min_tokens` above `max_tokens`.
    """

    n: Annotated[int, Meta(ge=1, le=128, description="Number of independent answers to the prompt.")] = 1
    max_tokens: (
        Annotated[
            int, Meta(ge=0, le=2**31 - 1, description="Largest number of new tokens; null: up to the context's end.")
        ]
        | None
    ) = None
    temperature: Temperature = 1.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    min_p: Annotated[Share, Meta(description="Smallest probability to keep, as a share of the likeliest token's.")] = (
        0.0
    )
    typical_p: Annotated[TopP, Meta(description="Mass of the tokens nearest to the entropy to keep, in (0, 1].")] = 1.0
    repetition_penalty: Annotated[
        float, Meta(ge=0.01, le=100.0, description="Penalty on tokens of prompt and answer; above 1: repeat less.")
    ] = 1.0
    presence_penalty: Annotated[Penalty, Meta(description="Penalty on each token that occurs in the answer.")] = 0.0
    frequency_penalty: Annotated[Penalty, Meta(description="Penalty per occurrence of a token in the answer.")] = 0.0
    logit_bias: Annotated[
        dict[TokenId, Bias], Meta(description="Values from -100 to 100, by token id, to add to the logits.")
    ] = {}
    allowed_token_ids: (
        Annotated[
            tuple[TokenId, ...], Meta(min_length=1, max_length=2**20, description="The only allowed ids; null: all.")
        ]
        | None
    ) = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1, description="Seed that makes the answer repeatable.")] | None = None
    stop: Annotated[tuple[str, ...], Meta(description="Texts that end the answer.")] = ()
    stop_token_ids: Annotated[tuple[TokenId, ...], Meta(description="Token ids that end the answer.")] = ()
    ignore_eos: Annotated[bool, Meta(description="Continue past the end token.")] = False
    min_tokens: Annotated[NumTokens, Meta(description="Number of new tokens before which the answer can't end.")] = 0
    logprobs: (
        Annotated[NumLogprobs, Meta(description="Number of likeliest tokens to report with log-probabilities.")] | None
    ) = None
    prompt_logprobs: (
        Annotated[NumLogprobs, Meta(description="The same for each prompt token except the first.")] | None
    ) = None
    prompt_logprobs_start: Annotated[
        NumTokens, Meta(description="Index of the first prompt token to report with log-probabilities.")
    ] = 0
    skip_special_tokens: Annotated[bool, Meta(description="Leave special tokens out of the text.")] = True
    include_stop_str_in_output: Annotated[
        bool, Meta(description="Keep the stop text or stop token that ends the answer.")
    ] = False

    structured_outputs: Annotated[StructuredOutputs, Meta(description="Form that the answer must have.")] | None = None

    def __post_init__(self) -> None:
        """Checks the rules across fields; `merge.validated` checks each field's own range."""
        if any(not text for text in self.stop):
            raise InvalidArgumentError(f"`stop` strings must not be empty, got {list(self.stop)!r}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidArgumentError(
                f"`min_tokens` must be at most `max_tokens` ({self.max_tokens}), got {self.min_tokens}"
            )


# The value that makes every draw take the likeliest token.
GREEDY = {"temperature": 0.0}
# Fields that a command which prints one text has no option for.
UNPRINTED = ("n", "logit_bias", "logprobs", "prompt_logprobs", "prompt_logprobs_start", "structured_outputs")


def with_form(params: SamplingParams, form: StructuredOutputs | None) -> SamplingParams:
    """Returns `params` for an answer of this form, or of any form."""
    return msgspec.structs.replace(params, structured_outputs=form)


def about(name: str) -> Meta:
    """The description of a field of `SamplingParams`, for a field of the same meaning and another range."""
    field = next(field for field in msgspec.structs.fields(SamplingParams) if field.name == name)
    return Meta(description=declared(field.type)[1].description)


def nullable_fields(skip: Collection[str]) -> list[tuple[str, Any, None]]:
    """The fields of `SamplingParams` for `msgspec.defstruct`, each with null as its default, except those in `skip`."""
    fields = msgspec.structs.fields(SamplingParams)
    return [(field.name, field.type | None, None) for field in fields if field.name not in skip]
