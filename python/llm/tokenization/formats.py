"""Opens and writes tokenizers in all supported formats."""

from collections.abc import Mapping
from pathlib import Path

from llm.errors import InvalidArgumentError, TokenizerError
from llm.tokenization.base import BaseTokenizer
from llm.tokenization.bpe import BPETokenizer
from llm.tokenization.character import SimpleCharacterTokenizer
from llm.tokenization.files import TOKENIZER_FILE, StrPath, tokenizer_file, write_text
from llm.tokenization.readers.detect import is_tokenizer_json, model_type
from llm.tokenization.writers import WRITERS

# Class by `model.type` in tokenizer.json.
TOKENIZERS: dict[str, type[BaseTokenizer]] = {"BPE": BPETokenizer, "WordLevel": SimpleCharacterTokenizer}
# Where a run keeps its tokenizer.
_OF_RUN = "tokenizer"


def load_tokenizer(
    path: StrPath,
    *,
    pattern: str | None = None,
    special_tokens: Mapping[str, int] | None = None,
    allow_pickle: bool = False,
) -> BaseTokenizer:
    """Returns the tokenizer in a directory, a run or a file of any format; see `BPETokenizer.from_pretrained`.

    Raises:
        FileError: The file doesn't exist.
        TokenizerError: The tokenizer's kind or one of its components is not supported.
    """
    path = Path(path)
    if (path / _OF_RUN).is_dir() and not (path / TOKENIZER_FILE).exists():
        path /= _OF_RUN
    try:
        return BPETokenizer.from_pretrained(
            path, pattern=pattern, special_tokens=special_tokens, allow_pickle=allow_pickle
        )
    except TokenizerError:
        # The file is read only here, because it may be large.
        if not is_tokenizer_json(path):
            raise
        file = tokenizer_file(path)
        kind = model_type(file)
        if kind not in TOKENIZERS:
            raise TokenizerError(
                f"{file}: unsupported `model.type`: must be one of {sorted(TOKENIZERS)}, got {kind!r}"
            ) from None
        if kind == "BPE":
            raise
        return TOKENIZERS[kind].from_pretrained(file)


def write_tokenizer(tokenizer: BaseTokenizer, path: StrPath, format: str) -> None:
    """Writes `tokenizer` in a format other than that of `save`.

    Args:
        tokenizer: The tokenizer; formats other than `tokenizer.json` store only byte-level BPE.
        path: The file to write, or for "gpt2" the directory.
        format: "tokenizer.json"; "tiktoken" (ranks without pattern and special tokens); "gpt2" (`vocab.json` and
            `merges.txt`); or "gguf" (the vocabulary without weights).

    Raises:
        FileError: The file can't be written; an existing file is then unchanged.
        InvalidArgumentError: The format is unknown.
        TokenizerError: The format can't store a part of the tokenizer; the message names the part.
    """
    if format not in WRITERS:
        raise InvalidArgumentError(f"`format` must be one of {sorted(WRITERS)}, got {format!r}")
    if isinstance(tokenizer, BPETokenizer):
        WRITERS[format](tokenizer, Path(path))
    elif format == TOKENIZER_FILE:
        write_text(Path(path), tokenizer.to_json())
    else:
        raise TokenizerError(f"`format` {format!r} stores only byte-level BPE, got a {type(tokenizer).__name__}")
