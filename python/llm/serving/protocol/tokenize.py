"""Types of `/tokenize`, `/detokenize` and `/tokenizer_info`."""

from typing import Annotated

import msgspec
from msgspec import Meta

from llm.serving.protocol.chat import ChatCompletionRequest, ChatMessage
from llm.serving.protocol.described import MODEL
from llm.settings.sampling import TokenId


class TokenizeRequest(ChatCompletionRequest, frozen=True, kw_only=True):
    """The request body of `POST /tokenize`: a text, or a conversation with all parameters of a chat."""

    model: Annotated[str, MODEL] = ""
    prompt: Annotated[str | None, Meta(description="The text; either this or `messages`.")] = None
    messages: Annotated[
        list[ChatMessage], Meta(min_length=1, description="The conversation, rendered by the chat template.")
    ] = msgspec.field(default_factory=list)
    parse_special: Annotated[
        bool,
        Meta(description="Whether the text of a special token becomes that token; the text endpoints never do this."),
    ] = True
    return_token_strs: Annotated[bool | None, Meta(description="Return the text of each token.")] = None


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/tokenize`."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The request body of `POST /detokenize`."""

    tokens: Annotated[list[TokenId], Meta(description="The token ids.")]
    model: Annotated[str, MODEL] = ""


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
