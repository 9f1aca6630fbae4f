"""Conversion between tokenizer formats."""

from collections.abc import Iterable
from pathlib import Path

from llm.errors import InvalidArgumentError
from llm.tokenization.base import BaseTokenizer
from llm.tokenization.files import CONFIG_FILE, TOKENIZER_FILE, StrPath
from llm.tokenization.formats import write_tokenizer

DIRECTORY = "directory"
FORMATS = (DIRECTORY, TOKENIZER_FILE, "tiktoken", "gpt2", "gguf")
# Format by file suffix.
_SUFFIXES = {".json": TOKENIZER_FILE, ".tiktoken": "tiktoken", ".gguf": "gguf"}
# Files of the formats that are directories, and of models and runs, which have tokenizers of their own.
_NAMES = {DIRECTORY: (TOKENIZER_FILE, CONFIG_FILE), "gpt2": ("vocab.json", "merges.txt")}
_RUN_FILE = "run.json"
_OWNERS = (_RUN_FILE, "config.json", "adapter_config.json", "*.safetensors")


def convert_tokenizer(tokenizer: BaseTokenizer, out: StrPath, format: str | None = None) -> str:
    """Writes `tokenizer` to `out` and returns the format used.

    Args:
        tokenizer: The tokenizer; formats other than `tokenizer.json` and a directory store only byte-level BPE.
        out: A file, or a directory for "directory" and "gpt2".
        format: One of `FORMATS`. None chooses by the suffix of `out`: `.json`, `.tiktoken` or `.gguf`, otherwise
            "directory", which holds `tokenizer.json` and `tokenizer_config.json` as written by `save`.

    Raises:
        FileError: The file can't be written.
        InvalidArgumentError: The format is unknown.
        TokenizerError: The format can't store a part of the tokenizer; the message names the part.
    """
    if format is not None and format not in FORMATS:
        raise InvalidArgumentError(f"a format must be one of {list(FORMATS)}, got {format!r}")
    format = format or _SUFFIXES.get(Path(out).suffix, DIRECTORY)
    if format == DIRECTORY:
        tokenizer.save(out)
    else:
        write_tokenizer(tokenizer, out, format)
    return format


def check_target(out: StrPath, format: str | None = None, *, named: str, overwrite: bool = False) -> None:
    """Checks that a tokenizer may be written to `out` and replaces nothing unasked, above all no model's tokenizer.

    Args:
        out: A file or directory, as in `convert_tokenizer`.
        format: The format, as in `convert_tokenizer`.
        named: What errors call `out`, such as `--out`.
        overwrite: Whether a tokenizer there may be replaced.

    Raises:
        InvalidArgumentError: A tokenizer is there and may not be replaced, or a model or run is.
    """
    target = Path(out)
    format = format or _SUFFIXES.get(target.suffix, DIRECTORY)
    if format not in _NAMES:
        if target.is_file() and not overwrite:
            raise InvalidArgumentError(
                f"`{named}` must be new, got {str(target)!r}, which exists\n"
                "hint: name another file, or add `--overwrite`"
            )
        return
    old = next((name for name in _NAMES[format] if (target / name).is_file()), None)
    owner = next((entry.name for pattern in _OWNERS for entry in sorted(target.glob(pattern))), None)
    if owner is not None and (old is not None or owner == _RUN_FILE):
        raise InvalidArgumentError(
            f"`{named}` must not be where a model or run has its own tokenizer, got {str(target)!r} with a {owner}\n"
            "hint: name another directory"
        )
    if old is not None and not overwrite:
        raise InvalidArgumentError(
            f"`{named}` must be new, got {str(target)!r}, which has a {old}\n"
            "hint: name another directory, or add `--overwrite`"
        )


def parse_special_tokens(entries: Iterable[str]) -> dict[str, int]:
    """Returns ids by special token, parsed from `TOKEN=ID` entries, for files without special tokens.

    Raises:
        InvalidArgumentError: An entry doesn't have this form.
    """
    tokens = {}
    for entry in entries:
        token, _, number = entry.rpartition("=")
        if not token or not number.isascii() or not number.isdigit():
            raise InvalidArgumentError(
                f"a special token must be given as TOKEN=ID, got {entry!r}\nhint: such as '<|endoftext|>=50256'"
            )
        tokens[token] = int(number)
    return tokens
