"""Detects a tokenizer's file format and reads it."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from llm.errors import FileError, TokenizerError
from llm.tokenization.files import TOKENIZER_FILE, StrPath, raise_if_stand_in, read_head, read_json_object, read_text
from llm.tokenization.readers import gpt2, pickled
from llm.tokenization.readers.common import Loaded, ReadOptions, core_from_json
from llm.tokenization.readers.gguf import read_gguf
from llm.tokenization.readers.gguf_file import MAGIC
from llm.tokenization.readers.tiktoken_ranks import read_rank_file
from llm.tokenization.settings import TokenizerSettings

Reader: TypeAlias = Callable[[Path, ReadOptions], Loaded]

FORMATS = (
    f"a directory or {TOKENIZER_FILE}, a rank file (*.tiktoken, Llama 3's tokenizer.model), GPT-2's vocab.json with "
    "merges.txt, or a *.gguf file"
)


def read_vocabulary(path: StrPath, options: ReadOptions) -> Loaded:
    """Reads and returns a tokenizer in any format.

    Raises:
        FileError: The file doesn't exist or can't be read.
        TokenizerError: The file has another format, is damaged, or has an unsupported part, which the message names.
    """
    path = Path(path)
    if path.is_dir():
        return _read_directory(path, options)
    if not path.is_file():
        raise FileError(f"{path}: no such file\nhint: pass {FORMATS}; `llm tokenizer train` creates one")
    return _reader(path)(path, options)


def is_tokenizer_json(path: Path) -> bool:
    """Returns whether `path` is a `tokenizer.json` or a directory that contains one."""
    return (path / TOKENIZER_FILE).is_file() if path.is_dir() else path.suffix == ".json" and not _is_gpt2(path)


def _is_gpt2(path: Path) -> bool:
    return path.name.endswith((*gpt2.VOCAB_FILES, *gpt2.MERGES_FILES))


def _read_directory(directory: Path, options: ReadOptions) -> Loaded:
    if (directory / TOKENIZER_FILE).is_file():
        return _read_json(directory / TOKENIZER_FILE, options)
    pair = gpt2.pair_in(directory)
    if pair is not None:
        return gpt2.read_pair(*pair, options)
    files = [directory / "tokenizer.model", *sorted(directory.glob("*.tiktoken")), *sorted(directory.glob("*.gguf"))]
    found = [file for file in files if file.is_file()]
    if len(found) != 1:
        got = ", ".join(file.name for file in found) or "none"
        raise FileError(
            f"{directory}: must contain {TOKENIZER_FILE}, vocab.json with merges.txt, or one of tokenizer.model, "
            f"*.tiktoken and *.gguf, got {got}\nhint: pass the file; `llm tokenizer train` creates one"
        )
    return _reader(found[0])(found[0], options)


def _reader(path: Path) -> Reader:
    raise_if_stand_in(path, TokenizerError)
    head = read_head(path, 256)
    if head.startswith(MAGIC):
        return read_gguf
    # Every pickle since Python 2.3 begins with this byte.
    if path.suffix in pickled.SUFFIXES or head[:1] == b"\x80":
        return pickled.read_pickle
    if _is_gpt2(path):
        return _read_gpt2
    if path.suffix == ".json":
        return _read_json
    first_line = head.split(b"\n", 1)[0].split()
    if path.suffix == ".tiktoken" or (len(first_line) == 2 and first_line[1].isdigit()):
        return read_rank_file
    raise TokenizerError(f"{path}: a tokenizer must be {FORMATS}, got a {path.suffix or path.name} file")


def _read_gpt2(path: Path, options: ReadOptions) -> Loaded:
    return gpt2.read_pair(*gpt2.pair_of(path), options)


def _read_json(path: Path, options: ReadOptions) -> Loaded:
    options.reject_vocabulary(path)
    core = core_from_json(read_text(path), path)
    return Loaded(core, TokenizerSettings.load(path.parent, core.special_tokens))


def model_type(path: Path) -> str | None:
    """Returns `model.type` of a `tokenizer.json`.

    Raises:
        FileError: The file can't be read.
        TokenizerError: The file is not a JSON object.
    """
    model = read_json_object(path).get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    return kind if isinstance(kind, str) else None
