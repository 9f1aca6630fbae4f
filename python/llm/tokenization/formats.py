"""Opening and writing tokenizers in every supported format."""

from collections.abc import Mapping
from pathlib import Path

from llm.errors import InvalidArgumentError, TokenizerError
from llm.tokenization.base import BaseTokenizer
from llm.tokenization.bpe import BPETokenizer
from llm.tokenization.character import SimpleCharacterTokenizer
from llm.tokenization.files import TOKENIZER_FILE, StrPath, tokenizer_file, write_text
from llm.tokenization.readers.detect import is_tokenizer_json, model_type
from llm.tokenization.writers import WRITERS

# Class by the model's type in tokenizer.json.
TOKENIZERS: dict[str, type[BaseTokenizer]] = {"BPE": BPETokenizer, "WordLevel": SimpleCharacterTokenizer}


def load_tokenizer(
    path: StrPath,
    *,
    pattern: str | None = None,
    special_tokens: Mapping[str, int] | None = None,
    allow_pickle: bool = False,
) -> BaseTokenizer:
    """Opens the tokenizer in a directory or file of any format; see `BPETokenizer.from_pretrained`.

    Raises:
        FileError: There is no such file.
        TokenizerError: It is of a kind, or has a component, that is not supported.
    """
    path = Path(path)
    try:
        return BPETokenizer.from_pretrained(
            path, pattern=pattern, special_tokens=special_tokens, allow_pickle=allow_pickle
        )
    except TokenizerError:
        # Only now, for the file may be large.
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
        tokenizer: Any; formats other than `tokenizer.json` hold byte-level BPE alone.
        path: A file; for "gpt2" a directory.
        format: "tokenizer.json"; "tiktoken", ranks alone, without pattern and special tokens; "gpt2", `vocab.json` and
            `merges.txt`; or "gguf", the vocabulary without weights.

    Raises:
        FileError: It can't be written. A file that was there is whole, old or new.
        InvalidArgumentError: There is no such format.
        TokenizerError: The format can't hold a part of the tokenizer; the message names it.
    """
    if format not in WRITERS:
        raise InvalidArgumentError(f"`format` must be one of {sorted(WRITERS)}, got {format!r}")
    if isinstance(tokenizer, BPETokenizer):
        WRITERS[format](tokenizer, Path(path))
    elif format == TOKENIZER_FILE:
        write_text(Path(path), tokenizer.to_json())
    else:
        raise TokenizerError(f"`format` {format!r} holds byte-level BPE alone, got a {type(tokenizer).__name__}")
