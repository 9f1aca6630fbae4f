"""Reads GPT-2's pair of files: `vocab.json` or `encoder.json` (ids by name) and `merges.txt` or `vocab.bpe`."""

from pathlib import Path
from typing import Any

from llm.errors import FileError, TokenizerError
from llm.tokenization.files import CONFIG_FILE, read_json_object, read_text
from llm.tokenization.readers.common import (
    Loaded,
    ReadOptions,
    added_token,
    byte_level_document,
    core_from_document,
    pre_tokenizer,
)
from llm.tokenization.settings import TokenizerSettings

VOCAB_FILES = ("vocab.json", "encoder.json")
MERGES_FILES = ("merges.txt", "vocab.bpe")
# Pattern and normalizer by `tokenizer_class` of `tokenizer_config.json`.
_BY_CLASS: dict[str, tuple[str, dict[str, str] | None]] = {
    "GPT2Tokenizer": ("gpt2", None),
    "Qwen2Tokenizer": ("qwen2", {"type": "NFC"}),
}


def pair_in(directory: Path) -> tuple[Path, Path] | None:
    """Returns the vocabulary and merges files in `directory`, or None unless both exist."""
    found = [
        next((directory / name for name in names if (directory / name).is_file()), None)
        for names in (VOCAB_FILES, MERGES_FILES)
    ]
    vocab, merges = found
    return None if vocab is None or merges is None else (vocab, merges)


def pair_of(path: Path) -> tuple[Path, Path]:
    """Returns the vocabulary and merges files, given the path of one of them.

    Names may have a common prefix, as in `gpt2_encoder.json` and `gpt2_vocab.bpe`.

    Raises:
        FileError: The other file doesn't exist.
    """
    own, other = (VOCAB_FILES, MERGES_FILES) if path.suffix == ".json" else (MERGES_FILES, VOCAB_FILES)
    prefix = next((path.name.removesuffix(name) for name in own if path.name.endswith(name)), "")
    wanted = [path.with_name(prefix + name) for name in other]
    found = next((file for file in wanted if file.is_file()), None)
    if found is None:
        raise FileError(f"{path}: needs {' or '.join(file.name for file in wanted)} in the same directory, got neither")
    return (path, found) if path.suffix == ".json" else (found, path)


def read_pair(vocab_file: Path, merges_file: Path, options: ReadOptions) -> Loaded:
    """Reads both files and the settings in their directory.

    Raises:
        FileError: A file can't be read.
        TokenizerError: A file has another format, or the pattern that splits text is unknown.
    """
    vocab = read_json_object(vocab_file)
    directory = vocab_file.parent
    config = read_json_object(directory / CONFIG_FILE) if (directory / CONFIG_FILE).is_file() else {}
    pattern, normalizer = _way_to_cut(config, options, vocab_file)
    added = _added_tokens(config, vocab, options, vocab_file)
    document = byte_level_document(vocab, _merges(merges_file), added, pre_tokenizer(pattern), normalizer=normalizer)
    core = core_from_document(document, vocab_file)
    settings = TokenizerSettings.load(directory, core.special_tokens)
    if not settings.has_roles:
        settings = TokenizerSettings.for_special_tokens(core.special_tokens)
    return Loaded(core, settings)


def way_of_class(name: str) -> tuple[str, dict[str, str] | None]:
    """Returns the pattern and normalizer of a tokenizer class of transformers."""
    return _BY_CLASS[name]


def _way_to_cut(config: dict[str, Any], options: ReadOptions, path: Path) -> tuple[str, dict[str, str] | None]:
    if options.pattern is not None:
        return options.pattern, None
    name = str(config.get("tokenizer_class") or "GPT2Tokenizer").removesuffix("Fast")
    # Names that this package and transformers write for any tokenizer.
    if name == "PreTrainedTokenizer":
        name = "GPT2Tokenizer"
    if name not in _BY_CLASS:
        raise TokenizerError(
            f"{path.parent / CONFIG_FILE}: unsupported `tokenizer_class`: must be one of {sorted(_BY_CLASS)} "
            f"without a tokenizer.json, got {name!r}\nhint: pass `pattern`, a name or a regular expression"
        )
    return _BY_CLASS[name]


def _merges(path: Path) -> list[str]:
    lines = read_text(path).split("\n")
    # Token names may begin with `#` too.
    start = 1 if lines[0].startswith("#version") else 0
    return [line.removesuffix("\r") for line in lines[start:] if line.strip("\r")]


def _added_tokens(
    config: dict[str, Any], vocab: dict[str, Any], options: ReadOptions, path: Path
) -> list[dict[str, Any]]:
    if options.special_tokens is not None:
        return [added_token(content, token_id) for content, token_id in options.special_tokens.items()]
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        try:
            return [{"id": int(token_id), **token} for token_id, token in decoder.items()]
        except (TypeError, ValueError) as error:
            raise TokenizerError(
                f"{path.parent / CONFIG_FILE}: `added_tokens_decoder` must map ids to tokens, got {str(decoder)[:200]}"
            ) from error
    roles = [config.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")]
    names = {"<|endoftext|>"} | {role for role in roles if isinstance(role, str)}
    return [added_token(name, vocab[name]) for name in vocab if name in names]
