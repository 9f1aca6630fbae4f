"""Types of `/v1/completions`."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta

from llm.serving.protocol.common import ChatFinishReason, GenerationRequest, TokenIdsField, UsageField
from llm.serving.protocol.described import TEXTS_OR_IDS
from llm.serving.protocol.logprobs import CompletionLogprobs, PromptLogprobs
from llm.settings.sampling import NumLogprobs, TokenId, about

MAX_PROMPTS = 256


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """The request body of `POST /v1/completions`; each prompt gets `n` choices, the best of `best_of` answers."""

    prompt: Annotated[
        str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1, max_length=2**20)], TEXTS_OR_IDS
    ]
    logprobs: Annotated[NumLogprobs | None, about("logprobs")] = None
    echo: Annotated[bool | None, Meta(description="Return the prompt before the answer.")] = None
    best_of: (
        Annotated[
            int,
            Meta(ge=1, le=128, description="Number of answers to generate, of which the `n` likeliest are returned."),
        ]
        | None
    ) = None

    @property
    def num_choices(self) -> int:
        """Returns how many choices each prompt gets."""
        return self.n or 1

    @property
    def num_sampled_logprobs(self) -> int | None:
        """Returns `logprobs`; `best_of` needs the log-probabilities of the answers even if the response has none."""
        is_ranked = (self.best_of or 1) > self.num_choices
        return 0 if self.logprobs is None and is_ranked else self.logprobs

    @property
    def adapted(self) -> dict[str, Any]:
        """Returns the sampling values in another form, those of `best_of` and of the echo among them."""
        echoed = self.logprobs if self.echo else None
        wanted = [number for number in (echoed, self.prompt_logprobs) if number is not None]
        return super().adapted | {"n": self.best_of or self.n, "prompt_logprobs": max(wanted, default=None)}

    @property
    def num_logprobs(self) -> int | None:
        """Returns how many most likely tokens to report per position, or None for no log-probabilities."""
        return self.logprobs


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The text of one choice, or the part of the text that a chunk adds."""

    index: int
    text: str
    finish_reason: ChatFinishReason | None
    logprobs: CompletionLogprobs | None = None
    prompt_logprobs: PromptLogprobs = UNSET
    token_ids: TokenIdsField = UNSET
    prompt_token_ids: TokenIdsField = UNSET


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/v1/completions`, and also each of its chunks."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: UsageField = UNSET
