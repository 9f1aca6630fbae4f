"""Readable descriptions of tokenizers, tokens and ids."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.text import Text

from llm.errors import InvalidArgumentError
from llm.tokenization.base import BaseTokenizer
from llm.tokenization.bpe import BPETokenizer
from llm.tokenization.corpus import corpus_files
from llm.tokenization.files import StrPath, read_text

SAMPLE_BYTES = 1 << 20
NUM_LONGEST = 5
NUM_SPECIAL = 8
# Two styles that separate adjacent tokens on dark and light terminals, and one that stands out.
PIECE_STYLES = ("black on bright_cyan", "black on bright_yellow")
SPECIAL_STYLE = "bold white on red"

_BETWEEN_IDS = re.compile(r"[\s,\[\]]+")
_ID = re.compile(r"-?[0-9]{1,18}")


def describe_tokenizer(tokenizer: BaseTokenizer) -> dict[str, str]:
    """Returns facts about a tokenizer in display order."""
    special = tokenizer.special_tokens
    special_ids = set(special.values())
    tokens = [(token_id, token) for token_id, token in enumerate(tokenizer.token_bytes()) if token is not None]
    ordinary = sorted((token for token_id, token in tokens if token_id not in special_ids), key=len, reverse=True)
    unused = tokenizer.vocab_size - len(tokens)
    listed = [f"{token} {token_id}" for token, token_id in special.items()][:NUM_SPECIAL]
    more = f", … {len(special) - NUM_SPECIAL} more" if len(special) > NUM_SPECIAL else ""
    return {
        "tokenizer": type(tokenizer).__name__,
        "entries": f"{tokenizer.vocab_size:,}" + (f", {unused:,} of them unused" if unused else ""),
        **pattern_fact(tokenizer),
        **_normalizer_fact(tokenizer),
        "special tokens": ", ".join(listed) + more if special else "none",
        "begins a text": tokenizer.settings.bos_token or "none",
        "ends a text": ", ".join(tokenizer.settings.eos_tokens) or "none",
        "fills up": tokenizer.settings.pad_token or "none",
        "longest tokens": "  ".join(f"{visible(token)!r}" for token in ordinary[:NUM_LONGEST]),
        "chat template": "yes" if tokenizer.chat_template else "no",
    }


def pattern_fact(tokenizer: BaseTokenizer) -> dict[str, str]:
    """Returns the name and kind of the split pattern, if the tokenizer has one."""
    if not isinstance(tokenizer, BPETokenizer):
        return {}
    custom = f"custom (general regex path): {tokenizer.pattern}"
    return {"pattern": custom if tokenizer.has_custom_pattern else f"{tokenizer.pattern} (built-in scanner)"}


def _normalizer_fact(tokenizer: BaseTokenizer) -> dict[str, str]:
    steps = json.loads(tokenizer.to_json()).get("normalizer")
    if not isinstance(steps, dict):
        return {"normaliser": "none"}
    return {"normaliser": ", ".join(str(step["type"]) for step in steps.get("normalizers", [steps]))}


def training_summary(tokenizer: BaseTokenizer, files: StrPath | Iterable[StrPath]) -> str:
    """Summarizes how a new tokenizer encodes the beginning of its corpus."""
    with corpus_files(files)[0].open("rb") as file:
        sample = file.read(SAMPLE_BYTES).decode(errors="ignore")
    return f"{tokenizer.vocab_size:,} entries, {bytes_per_token(tokenizer, sample):.2f} bytes per token"


def bytes_per_token(tokenizer: BaseTokenizer, text: str) -> float:
    """Returns the number of bytes per token in `text`, or 0 for an empty text."""
    return len(text.encode()) / max(1, tokenizer.count_tokens(text))


def input_text(text: str | None, file: str | None, stdin: IO[bytes] | None) -> str:
    """Returns a command's input text from an argument, a file or standard input.

    Raises:
        InvalidArgumentError: Both an argument and a file are given, or standard input is not UTF-8.
        FileError: The file can't be read.
        TokenizerError: The file is not UTF-8.
    """
    if text is not None and file is not None:
        raise InvalidArgumentError("text must come from an argument or `--file`, got both")
    if text is not None:
        return text
    if file is not None or stdin is None:
        return read_text(Path(os.fspath(file or "")))
    try:
        return stdin.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"standard input must be UTF-8, got byte {error.object[error.start]:#04x} at offset {error.start}"
        ) from error


def parse_ids(parts: Iterable[str | bytes]) -> Iterator[int]:
    """Yields the ids in texts such as `1 2 3` or `[1, 2, 3]` as they arrive.

    Raises:
        InvalidArgumentError: A part is not a whole number.
    """
    for part in parts:
        text = part if isinstance(part, str) else part.decode(errors="replace")
        for word in filter(None, _BETWEEN_IDS.split(text)):
            if not _ID.fullmatch(word):
                raise InvalidArgumentError(f"token ids must be whole numbers, got {word!r}")
            yield int(word)


def visible(token: bytes) -> str:
    """Returns a token's text, with incomplete characters as hexadecimal bytes."""
    return token.decode(errors="backslashreplace")


def print_pieces(tokenizer: BaseTokenizer, ids: Sequence[int], console: Console | None = None) -> None:
    """Prints the text of each token, coloured on a terminal, otherwise separated by `|` with escapes."""
    console = console or Console(highlight=False)
    special = set(tokenizer.special_tokens.values())
    pieces = [visible(tokenizer.id_to_bytes(token_id)) for token_id in ids]
    if console.is_terminal:
        text = Text()
        for index, (token_id, piece) in enumerate(zip(ids, pieces, strict=True)):
            style = SPECIAL_STYLE if token_id in special else PIECE_STYLES[index % len(PIECE_STYLES)]
            text.append(piece.replace("\n", "↵\n"), style)
        console.print(text, soft_wrap=True)
    else:
        escaped = ("".join(c if c.isprintable() else repr(c)[1:-1] for c in piece) for piece in pieces)
        console.print(Text("|".join(escaped)), soft_wrap=True)
    num_bytes = sum(len(tokenizer.id_to_bytes(token_id)) for token_id in ids)
    console.print(f"{len(ids)} tokens, {num_bytes} bytes, {num_bytes / max(1, len(ids)):.2f} bytes per token")
