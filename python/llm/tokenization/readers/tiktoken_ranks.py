"""Reads tiktoken's rank files, with one line per token: its bytes in Base64 and its rank, which is its id.

The files contain neither the pattern nor the special tokens; this module knows those of published files.
Source: openai/tiktoken `tiktoken_ext/openai_public.py`; meta-llama/llama-models `llama3/tokenizer.py`; Qwen/Qwen-7B
`tokenization_qwen.py`.
"""

import binascii
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from llm.errors import TokenizerError
from llm.tokenization.files import read_bytes
from llm.tokenization.readers.common import Loaded, ReadOptions, core_from_ranks
from llm.tokenization.settings import TokenizerSettings


class Published(NamedTuple):
    """The pattern and special tokens of a published rank file, which the file doesn't contain."""

    pattern: str
    special_tokens: Mapping[str, int]


_LLAMA3_NAMED = (
    "begin_of_text",
    "end_of_text",
    "reserved_special_token_0",
    "reserved_special_token_1",
    "finetune_right_pad_id",
    "step_id",
    "start_header_id",
    "end_header_id",
    "eom_id",
    "eot_id",
    "python_tag",
    "image",
)
_LLAMA3 = [*_LLAMA3_NAMED, *(f"reserved_special_token_{index}" for index in range(2, 246))]
_QWEN = ["endoftext", "im_start", "im_end", *(f"extra_{index}" for index in range(205))]


def _numbered(names: list[str], first: int) -> dict[str, int]:
    return {f"<|{name}|>": first + index for index, name in enumerate(names)}


_GPT2 = Published("gpt2", {"<|endoftext|>": 50_256})
PUBLISHED = {
    "gpt2": _GPT2,
    "r50k_base": _GPT2,
    "p50k_base": _GPT2,
    "cl100k_base": Published(
        "cl100k",
        {
            "<|endoftext|>": 100_257,
            "<|fim_prefix|>": 100_258,
            "<|fim_middle|>": 100_259,
            "<|fim_suffix|>": 100_260,
            "<|endofprompt|>": 100_276,
        },
    ),
    "o200k_base": Published("o200k", {"<|endoftext|>": 199_999, "<|endofprompt|>": 200_018}),
    "llama3": Published("llama3", _numbered(_LLAMA3, 128_000)),
    "qwen": Published("qwen2", _numbered(_QWEN, 151_643)),
}
# Name by the file's SHA-256, because files get renamed.
_NAME_BY_SHA256 = {
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930": "r50k_base",
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069": "p50k_base",
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": "cl100k_base",
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": "o200k_base",
    "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55": "llama3",
    "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186": "qwen",
}


def read_rank_file(path: Path, options: ReadOptions) -> Loaded:
    """Reads a rank file; the pattern and special tokens of a published file are found by its hash or name.

    Raises:
        FileError: The file can't be read.
        TokenizerError: A line is not a token and a rank, single bytes are missing, or the file is unknown and there is
            no `pattern`.
    """
    content = read_bytes(path)
    published = _published(path, content)
    if published is None and options.pattern is None:
        raise TokenizerError(
            f"{path}: a rank file needs a pattern unless it is a known file ({', '.join(PUBLISHED)})\n"
            "hint: pass `pattern` (a name or a regular expression) and `special_tokens` with their ids"
        )
    default = published or Published("", {})
    special_tokens = default.special_tokens if options.special_tokens is None else options.special_tokens
    core = core_from_ranks(_parsed(content, path), special_tokens, options.pattern or default.pattern, path)
    return Loaded(core, TokenizerSettings.for_special_tokens(core.special_tokens))


def _published(path: Path, content: bytes) -> Published | None:
    name = _NAME_BY_SHA256.get(hashlib.sha256(content).hexdigest(), path.stem)
    return PUBLISHED.get(name)


def _parsed(content: bytes, path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line:
            continue
        try:
            encoded, rank = line.split()
            token = binascii.a2b_base64(encoded, strict_mode=True)
            if ranks.setdefault(token, int(rank)) != int(rank) or not token:
                raise ValueError
        except ValueError as error:
            got = repr(line[:60])[1:]
            raise TokenizerError(
                f"{path}: line {number} must be a new token in Base64, a space and its rank, got {got}"
            ) from error
    return ranks
