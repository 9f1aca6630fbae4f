"""Log-probabilities in the forms of OpenAI's API and of vLLM."""

import msgspec
from msgspec import UnsetType


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate token as text and as bytes, because a token may hold incomplete characters."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob, frozen=True, kw_only=True):
    """The chosen token and the most likely tokens at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probabilities of a chat answer or one of its chunks."""

    content: list[ContentLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    r"""Log-probabilities of a completion or one of its chunks, with one list per field.

    The first token of a prompt has null as its log-probability. A token that is no whole text is named
    by its bytes, as in `bytes:\xf0\x9f`.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class PromptLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """The log-probability of a prompt token, or of an alternative at its position."""

    logprob: float
    rank: int
    decoded_token: str


# By token id; null for the first token. Absent unless requested.
PromptLogprobs = list[dict[str, PromptLogprob] | None] | UnsetType
