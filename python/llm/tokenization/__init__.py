"""Tokenizers and chat templates, without a dependency on PyTorch or transformers."""

from llm._rust import TokenStream
from llm.tokenization.base import BaseTokenizer
from llm.tokenization.blocks import BlockIds, TokenArray
from llm.tokenization.bpe import BPETokenizer
from llm.tokenization.character import SimpleCharacterTokenizer
from llm.tokenization.chat import (
    TEMPLATES,
    ChatOptions,
    ChatTemplate,
    ConversationOptions,
    encode_chat,
    render_chat,
    use_chat_template,
)
from llm.tokenization.chat_files import choose_chat_template
from llm.tokenization.chat_mask import ChatEncoding, encode_chat_with_mask
from llm.tokenization.formats import load_tokenizer, write_tokenizer
from llm.tokenization.framing import frame_of
from llm.tokenization.options import EncodeOptions, Encoding, FlatIds, PaddedEncodeOptions, PadOptions
from llm.tokenization.padding import PaddedBatch
from llm.tokenization.settings import TokenizerSettings

__all__ = [
    "TEMPLATES",
    "BPETokenizer",
    "BaseTokenizer",
    "BlockIds",
    "ChatEncoding",
    "ChatOptions",
    "ChatTemplate",
    "ConversationOptions",
    "EncodeOptions",
    "Encoding",
    "FlatIds",
    "PadOptions",
    "PaddedBatch",
    "PaddedEncodeOptions",
    "SimpleCharacterTokenizer",
    "TokenArray",
    "TokenStream",
    "TokenizerSettings",
    "choose_chat_template",
    "encode_chat",
    "encode_chat_with_mask",
    "frame_of",
    "load_tokenizer",
    "render_chat",
    "use_chat_template",
    "write_tokenizer",
]
