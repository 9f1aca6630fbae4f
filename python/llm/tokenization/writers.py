"""Writes BPE tokenizers in other formats.

Most formats store less than `tokenizer.json`. The result is therefore read back in memory, and a part that differs is
an error that names the part, so nothing is lost silently.
"""

import base64
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from llm import _rust
from llm.errors import TokenizerError
from llm.tokenization.bpe import BPETokenizer
from llm.tokenization.files import CONFIG_FILE, TOKENIZER_FILE, read_json_object, write_bytes, write_text
from llm.tokenization.readers import gguf
from llm.tokenization.readers.common import byte_level_document, core_from_document, core_from_ranks, pre_tokenizer
from llm.tokenization.readers.gguf_file import metadata_bytes
from llm.tokenization.readers.gpt2 import MERGES_FILES, VOCAB_FILES, way_of_class

Document: TypeAlias = dict[str, Any]

# transformers' class by the way it splits text.
_CLASSES = ("GPT2Tokenizer", "Qwen2Tokenizer")


def write_json(tokenizer: BPETokenizer, path: Path) -> None:
    """Writes `tokenizer.json` only; `save` also writes the settings.

    Raises:
        FileError: The file can't be written.
    """
    write_text(path, tokenizer.to_json())


def write_ranks(tokenizer: BPETokenizer, path: Path) -> None:
    """Writes tiktoken's rank file, which stores neither pattern nor special tokens; pass both to read the file.

    Raises:
        FileError: The file can't be written.
        TokenizerError: Ids are not the ranks of the merges, or the tokenizer has other components than a pattern and
            special tokens.
    """
    target = "a rank file"
    document = _byte_level_document(tokenizer, target)
    special = set(tokenizer.special_tokens.values())
    table = enumerate(tokenizer.token_bytes())
    ranks = {token: token_id for token_id, token in table if token is not None and token_id not in special}
    if {bytes([byte]) for byte in range(256)} <= ranks.keys():
        again = core_from_ranks(ranks, tokenizer.special_tokens, tokenizer.pattern, path)
    else:
        again = core_from_ranks({bytes([byte]): byte for byte in range(256)}, {}, "gpt2", path)
    proven = ("merges", "ignore_merges") if _is_by_rank(document, json.loads(again.to_json())) else ()
    _check_same(tokenizer, again, target, proven)
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    write_text(path, "".join(lines))


def write_gpt2(tokenizer: BPETokenizer, path: Path) -> None:
    """Writes `vocab.json`, `merges.txt` and `tokenizer_config.json` into the directory `path`.

    Raises:
        FileError: A file can't be written.
        TokenizerError: None of transformers' classes for these files splits or normalizes text in the same way.
    """
    target = "GPT-2's pair of files"
    document = _byte_level_document(tokenizer, target)
    vocab, added = document["model"]["vocab"], document["added_tokens"]
    merges = _merge_lines(document)
    ways = {name: way_of_class(name) for name in _CLASSES}
    fitting = (name for name, (pattern, normalizer) in ways.items() if _cuts_as(document, pattern, normalizer))
    name = next(fitting, _CLASSES[0])
    pattern, normalizer = ways[name]
    again = byte_level_document(vocab, merges, added, pre_tokenizer(pattern), normalizer=normalizer)
    _check_same(tokenizer, core_from_document(again, path), target)
    write_text(path / VOCAB_FILES[0], json.dumps(vocab, ensure_ascii=False))
    write_text(path / MERGES_FILES[0], "\n".join(["#version: 0.2", *merges, ""]))
    tokenizer.settings.save(path)
    config = read_json_object(path / CONFIG_FILE) | {"tokenizer_class": name, "added_tokens_decoder": _by_id(added)}
    write_text(path / CONFIG_FILE, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def write_gguf(tokenizer: BPETokenizer, path: Path) -> None:
    """Writes a GGUF file with vocabulary, roles and chat template but without weights.

    Raises:
        FileError: The file can't be written.
        TokenizerError: The format can't store the tokenizer; see `gguf_metadata`.
    """
    # Readers require an architecture even without weights.
    head = {"general.architecture": "llama", "general.type": "vocab"}
    write_bytes(path, metadata_bytes(head | gguf_metadata(tokenizer, path)))


def gguf_metadata(tokenizer: BPETokenizer, path: Path, num_tokens: int = 0) -> Document:
    """Returns vocabulary, roles and chat template as the metadata of a GGUF file.

    Args:
        tokenizer: A byte-level tokenizer.
        path: The file, for error messages.
        num_tokens: Smallest number of token names to write; llama.cpp needs one per row of the model's embeddings.

    Raises:
        TokenizerError: The tokenizer is not byte-level, or GGUF has no name for the way it splits text.
    """
    target = "a GGUF file"
    document = _byte_level_document(tokenizer, target)
    whole_first = document["model"]["ignore_merges"]
    fitting = (
        name
        for name, way in gguf.PRE_TOKENIZERS.items()
        if way.whole_first == whole_first and _plain(way.document()) == _plain(document["pre_tokenizer"])
        if way.normalizer == document["normalizer"]
    )
    name = next(fitting, "gpt-2")
    metadata = _gguf_metadata(tokenizer, document, name, num_tokens)
    again = gguf.byte_level(gguf.Metadata(metadata, path), gguf.PRE_TOKENIZERS[name])
    _check_same(tokenizer, core_from_document(again, path), target)
    return metadata


# Writer by format name.
WRITERS: Mapping[str, Callable[[BPETokenizer, Path], None]] = {
    TOKENIZER_FILE: write_json,
    "tiktoken": write_ranks,
    "gpt2": write_gpt2,
    "gguf": write_gguf,
}


def _byte_level_document(tokenizer: BPETokenizer, target: str) -> Document:
    document: Document = json.loads(tokenizer.to_json())
    if document["decoder"]["type"] != "ByteLevel":
        raise _lost("decoder", document["decoder"], target)
    return document


def _cuts_as(document: Document, pattern: str, normalizer: Document | None) -> bool:
    wanted = (pre_tokenizer(pattern), normalizer)
    return bool(_plain([document["pre_tokenizer"], document["normalizer"]]) == _plain(list(wanted)))


def _plain(value: Any) -> Any:
    """Returns a component without the fields that don't affect ids, so that equivalent components compare equal."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: _plain(item) for name, item in value.items() if name != "trim_offsets"}


def _is_by_rank(document: Document, again: Document) -> bool:
    """Returns whether merges are ordered by the id of their result and include all merges of a rank file, `again`.

    Additional merges, which `transformers` writes, are other splits of tokens that merging reaches and have no effect.
    """
    model, ranked = document["model"], again["model"]
    if ranked["ignore_merges"] and not model["ignore_merges"]:
        return False
    ids = [model["vocab"][left + right] for left, right in model["merges"]]
    return ids == sorted(ids) and set(map(tuple, ranked["merges"])) <= set(map(tuple, model["merges"]))


def _check_same(tokenizer: BPETokenizer, core: _rust.Tokenizer, target: str, proven: Collection[str] = ()) -> None:
    """Checks that all parts that affect ids or text are equal, except the parts in `proven`, known to be equivalent.

    Raises:
        TokenizerError: `target` can't store a part; the message names the first such part.
    """
    document, again = json.loads(tokenizer.to_json()), json.loads(core.to_json())
    for name in ("normalizer", "pre_tokenizer"):
        if _plain(document[name]) != _plain(again[name]):
            raise _lost(name, document[name], target)
    if tokenizer.template != core.template:
        raise _lost("post_processor", document["post_processor"], target)
    if document["added_tokens"] != again["added_tokens"]:
        raise _lost("added_tokens", document["added_tokens"], target)
    for name in ("ignore_merges", "unk_token", "vocab", "merges"):
        value = document["model"].get(name)
        if name not in proven and value != again["model"].get(name):
            raise _lost(f"model.{name}", value, target)


def _lost(name: str, value: Any, target: str) -> TokenizerError:
    got = json.dumps(value, ensure_ascii=False)
    return TokenizerError(
        f"{target} can't store this tokenizer's `{name}`: {got[:120] + '…' if len(got) > 120 else got}\n"
        f"hint: write {TOKENIZER_FILE}, which stores all parts"
    )


def _merge_lines(document: Document) -> list[str]:
    # Byte-level names contain no spaces.
    return [" ".join(pair) for pair in document["model"]["merges"]]


def _by_id(added: list[Document]) -> Document:
    return {str(token["id"]): {name: value for name, value in token.items() if name != "id"} for token in added}


def _gguf_metadata(tokenizer: BPETokenizer, document: Document, pre: str, num_tokens: int) -> Document:
    vocab: dict[str, int] = document["model"]["vocab"]
    names = {token_id: name for name, token_id in vocab.items()}
    kinds = {t["id"]: gguf.CONTROL if t["special"] else gguf.USER_DEFINED for t in document["added_tokens"]}
    ids = range(max(tokenizer.vocab_size, num_tokens))
    settings = tokenizer.settings
    values: Document = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        # GGUF requires a name for every id.
        "tokenizer.ggml.tokens": [names.get(token_id, f"[UNUSED{token_id}]") for token_id in ids],
        "tokenizer.ggml.token_type": [
            kinds.get(token_id, gguf.NORMAL if token_id in names else gguf.UNUSED) for token_id in ids
        ],
        "tokenizer.ggml.merges": _merge_lines(document),
    }
    roles = {"bos": settings.bos_token, "padding": settings.pad_token, "unknown": settings.unk_token}
    roles["eos"] = settings.eos_tokens[0] if settings.eos_tokens else None
    for role, token in roles.items():
        if token is not None:
            values[f"tokenizer.ggml.{role}_token_id"] = tokenizer.special_tokens[token]
    prefix, suffix = tokenizer.template or ([], [])
    values["tokenizer.ggml.add_bos_token"] = tokenizer.bos_id is not None and prefix == [tokenizer.bos_id]
    values["tokenizer.ggml.add_eos_token"] = bool(suffix) and suffix == list(tokenizer.eos_ids[:1])
    if settings.chat_template is not None:
        values["tokenizer.chat_template"] = settings.chat_template
    if settings.named_templates:
        values["tokenizer.chat_templates"] = list(settings.named_templates)
        values |= {gguf.NAMED_TEMPLATE + name: text for name, text in settings.named_templates.items()}
    return values
