"""Types of `/tokenize`, `/detokenize` and `/tokenizer_info`."""

from typing import Annotated

import msgspec
from msgspec import Meta

from llm.serving.protocol.chat import ChatCompletionRequest, ChatMessage
from llm.settings.sampling import TokenId


class TokenizeRequest(ChatCompletionRequest, frozen=True, kw_only=True):
    """The request body of `POST /tokenize`: a text, or a conversation with all parameters of a chat.

    Attributes:
        parse_special: Whether the text of a special token becomes that token; the text endpoints never do this.
        return_token_strs: Whether the response holds the text of each token.
    """

    model: Annotated[str, Meta(min_length=1)] = ""
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1)] = msgspec.field(default_factory=list)
    parse_special: bool = True
    return_token_strs: bool | None = None


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/tokenize`."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The request body of `POST /detokenize`."""

    tokens: list[TokenId]
    model: Annotated[str, Meta(min_length=1)] = ""


class DetokenizedText(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/detokenize`."""

    prompt: str


class TokenizerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/tokenizer_info`, with the names of `tokenizer_config.json`."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    add_bos_token: bool
    add_eos_token: bool
    chat_template: str | None
