"""How one request is sampled: the words of OpenAI's API and of vLLM, checked here."""

from typing import Annotated

import msgspec

from llm.errors import InvalidArgumentError

TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides which token comes next, and when to stop.

    `allowed_token_ids`, `logit_bias` and penalties come first, then `temperature`, then `top_k`, `top_p`, `min_p` and
    `typical_p`, each on what the one before left.
    The same `seed` gives the same tokens whatever else the engine runs; without one, a fresh seed is drawn.

    Raises:
        InvalidArgumentError: An empty stop string, or `min_tokens` above `max_tokens`.
    """

    n: Annotated[int, msgspec.Meta(ge=1, le=128, description="Answers to one prompt, each drawn on its own.")] = 1
    max_tokens: (
        Annotated[int, msgspec.Meta(ge=1, description="New tokens at most; null: to the context's end.")] | None
    ) = None
    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=100.0, description="0 is greedy; 1 the model's own.")] = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=0, description="Keep the k likeliest tokens; 0: all.")] = 0
    top_p: Annotated[float, msgspec.Meta(gt=0.0, le=1.0, description="Keep the smallest set of this mass.")] = 1.0
    min_p: Annotated[float, msgspec.Meta(ge=0.0, le=1.0, description="Drop below this share of the best token.")] = 0.0
    typical_p: Annotated[
        float, msgspec.Meta(gt=0.0, le=1.0, description="Keep the set of this mass nearest to the entropy.")
    ] = 1.0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0.0, le=100.0, description="Over 1: repeat less.")] = 1.0
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2.0, le=2.0, description="Once per token seen.")] = 0.0
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2.0, le=2.0, description="Per time a token was seen.")] = 0.0
    logit_bias: Annotated[
        dict[TokenId, Annotated[float, msgspec.Meta(ge=-100.0, le=100.0)]],
        msgspec.Meta(description="Added to the logits of these token ids, -100 to 100."),
    ] = {}
    allowed_token_ids: (
        Annotated[tuple[TokenId, ...], msgspec.Meta(min_length=1, description="Only these may come; null: all.")] | None
    ) = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1, description="Makes the draw repeatable.")] | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[TokenId, ...] = ()
    ignore_eos: bool = False
    min_tokens: Annotated[int, msgspec.Meta(ge=0, description="No stop before this many new tokens.")] = 0
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=20, description="Also the n likeliest tokens' logprobs.")] | None = (
        None
    )
    prompt_logprobs: (
        Annotated[int, msgspec.Meta(ge=0, le=20, description="The same of each prompt token but the first.")] | None
    ) = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: Annotated[
        bool, msgspec.Meta(description="Whether the stop text or token that ends an answer is part of it.")
    ] = False

    def __post_init__(self) -> None:
        """Checks the rules across fields; `merge.validated` checks each field's own range."""
        if any(not text for text in self.stop):
            raise InvalidArgumentError(f"`stop` strings must not be empty, got {list(self.stop)!r}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidArgumentError(
                f"`min_tokens` must be at most `max_tokens` ({self.max_tokens}), got {self.min_tokens}"
            )
