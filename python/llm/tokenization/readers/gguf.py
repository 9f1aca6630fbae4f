"""Reads the vocabulary in a GGUF file's metadata.

Source: ggml-org/ggml `docs/gguf.md` for the keys; ggml-org/llama.cpp `src/llama-vocab.cpp` for the names of
pre-tokenizers; huggingface/transformers `convert_slow_tokenizer.py`, `generate_merges`, for merges from scores.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm.errors import TokenizerError
from llm.tokenization.readers.common import (
    Loaded,
    ReadOptions,
    added_token,
    byte_level_document,
    core_from_document,
    pre_tokenizer,
)
from llm.tokenization.readers.gguf_file import read_metadata
from llm.tokenization.settings import TokenizerSettings

# Prefix of the keys of named templates; the name follows.
NAMED_TEMPLATE = "tokenizer.chat_template."
# Token types.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_DIGITS = {"type": "Digits", "individual_digits": True}
_IN_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_SPACE = "▁"
_ENDS = ("bos", "eos")


class PreTokenizer:
    """The way of splitting text that a name in `tokenizer.ggml.pre` stands for.

    One pattern, or several that split the pieces of the one before; digits are split first, or last of several.
    """

    def __init__(self, *patterns: str, digits: bool = False, nfc: bool = False, whole_first: bool = False) -> None:
        self.patterns = patterns
        self.normalizer = {"type": "NFC"} if nfc else None
        self.digits = digits
        self.whole_first = whole_first

    def document(self) -> dict[str, Any]:
        """Returns the `pre_tokenizer` and related parts of a `tokenizer.json`."""
        if len(self.patterns) > 1:
            cuts = [_split(pattern) for pattern in self.patterns]
            return {"type": "Sequence", "pretokenizers": [*cuts, *([_DIGITS] if self.digits else []), _IN_BYTES]}
        cut = pre_tokenizer(self.patterns[0])
        return {"type": "Sequence", "pretokenizers": [_DIGITS, cut]} if self.digits else cut


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


_GPT2, _LLAMA3, _QWEN2 = PreTokenizer("gpt2"), PreTokenizer("gpt4", whole_first=True), PreTokenizer("qwen2", nfc=True)
_STARCODER = PreTokenizer("gpt2", digits=True)
# Letters that have a case, by which DeepSeek's models up to V2 split words.
_CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώ"
    "ᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏"
    "𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_DEEPSEEK = PreTokenizer(
    "[\r\n]",
    rf"\s?[{_CASED}]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    "[一-龥ࠀ-一가-퟿]+",
    digits=True,
)
_BREAKS = "\r\n"
_DEEPSEEK3 = PreTokenizer(
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^""" + _BREAKS + r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[" + _BREAKS + r"]*|\s*[" + _BREAKS + r"]+|\s+(?!\S)|\s+",
)
# The writer uses the first name of each way of splitting text.
PRE_TOKENIZERS = {
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "gpt-4o": PreTokenizer("o200k"),
    "smollm": _STARCODER,
    "dbrx": PreTokenizer("gpt4"),
    "stablelm2": PreTokenizer("qwen2"),
    "deepseek-llm": _DEEPSEEK,
    "deepseek-v3": _DEEPSEEK3,
    "deepseek-r1-qwen": _QWEN2,
    "dolma": _GPT2,
    "jais": _GPT2,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "mpt": _GPT2,
    "olmo": _GPT2,
    "phi-2": _GPT2,
    "refact": _STARCODER,
    "smaug-bpe": PreTokenizer("gpt4"),
    "starcoder": _STARCODER,
}


def read_gguf(path: Path, options: ReadOptions) -> Loaded:
    """Reads the vocabulary, roles of tokens and chat template of a GGUF file without reading its weights.

    Raises:
        FileError: The file can't be read.
        TokenizerError: The file is truncated, has no vocabulary or an unsupported kind, which the message names.
    """
    metadata = Metadata(read_metadata(path, "tokenizer."), path)
    model = metadata.get("tokenizer.ggml.model", str)
    if model == "gpt2":
        document = byte_level(metadata, _way_to_cut(metadata, options), options.special_tokens)
    elif model == "llama":
        options.reject_vocabulary(path)
        document = _sentence_piece(metadata)
    else:
        raise TokenizerError(f"{path}: unsupported `tokenizer.ggml.model`: must be gpt2 or llama, got {model!r}")
    core = core_from_document(document, path)
    return Loaded(core, metadata.settings(core.special_tokens))


class Metadata:
    """Metadata values by key, with checks of their types."""

    def __init__(self, values: dict[str, Any], path: Path) -> None:
        self.values = values
        self.path = path

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """Returns the value of `key`, or `default`; raises TokenizerError if its type is not `kind`."""
        value = self.values.get(key, default)
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise TokenizerError(f"{self.path}: `{key}` must be {kind.__name__}, got {str(value)[:60]!r}")
        return value

    def items(self, key: str, kind: type) -> list[Any]:
        """Returns the list of `key`; raises TokenizerError if it is missing or an item's type is not `kind`."""
        values = self.get(key, list)
        if values is None or not all(isinstance(value, kind) for value in values):
            raise TokenizerError(f"{self.path}: `{key}` must be a list of {kind.__name__}, got {str(values)[:60]!r}")
        return list(values)

    def tokens(self) -> list[str]:
        """Returns the name of each id."""
        tokens: list[str] = self.items("tokenizer.ggml.tokens", str)
        if len(set(tokens)) != len(tokens):
            raise TokenizerError(f"{self.path}: `tokenizer.ggml.tokens` must be unique")
        return tokens

    def types(self, num_tokens: int) -> list[int]:
        """Returns the type of each id."""
        if "tokenizer.ggml.token_type" not in self.values:
            return [NORMAL] * num_tokens
        types = self.items("tokenizer.ggml.token_type", int)
        self.check_len("tokenizer.ggml.token_type", types, num_tokens)
        return types

    def check_len(self, key: str, values: Sequence[Any], num_tokens: int) -> None:
        """Raises TokenizerError unless there is one value per token."""
        if len(values) != num_tokens:
            raise TokenizerError(
                f"{self.path}: `{key}` must have one value for each of {num_tokens} tokens, got {len(values)}"
            )

    def id_of(self, role: str) -> int | None:
        """Returns the id of the token with this role, or None."""
        value: int | None = self.get(f"tokenizer.ggml.{role}_token_id", int)
        return value

    def settings(self, special_tokens: dict[str, int]) -> TokenizerSettings:
        """Returns roles of special tokens and chat templates."""
        names: dict[int | None, str] = {token_id: token for token, token_id in special_tokens.items()}
        ends = [self.id_of(role) for role in ("eos", "eot", "eom")]
        return TokenizerSettings(
            bos_token=names.get(self.id_of("bos")),
            eos_tokens=tuple(dict.fromkeys(names[token_id] for token_id in ends if token_id in names)),
            pad_token=names.get(self.id_of("padding")),
            unk_token=names.get(self.id_of("unknown")),
            add_bos_token=self.get("tokenizer.ggml.add_bos_token", bool),
            add_eos_token=self.get("tokenizer.ggml.add_eos_token", bool),
            chat_template=self.get("tokenizer.chat_template", str),
            named_templates={
                key.removeprefix(NAMED_TEMPLATE): self.get(key, str)
                for key in self.values
                if key.startswith(NAMED_TEMPLATE)
            },
        )


def _added(tokens: Sequence[str], types: Sequence[int], roles: set[int | None]) -> list[dict[str, Any]]:
    added = []
    for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (CONTROL, UNKNOWN) or token_id in roles:
            added.append(added_token(token, token_id))
        elif kind == USER_DEFINED and _SPACE not in token:
            # Merging reaches tokens with spaces; the normalizer would change such an added token.
            added.append(added_token(token, token_id, special=False))
    return added


def _roles(metadata: Metadata) -> set[int | None]:
    return {metadata.id_of(role) for role in ("bos", "eos", "eot", "eom", "padding", "unknown")} - {None}


def byte_level(
    metadata: Metadata, way: PreTokenizer, special_tokens: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Returns the `tokenizer.json` of a byte-level vocabulary; `special_tokens` replaces those of the file.

    Raises:
        TokenizerError: A list is missing or has the wrong type or length.
    """
    tokens = metadata.tokens()
    types = metadata.types(len(tokens))
    if special_tokens is None:
        added = _added(tokens, types, _roles(metadata))
    else:
        added = [added_token(content, token_id) for content, token_id in special_tokens.items()]
    return byte_level_document(
        {token: token_id for token_id, token in enumerate(tokens) if types[token_id] != UNUSED},
        # gguf-py leaves empty lists out.
        metadata.items("tokenizer.ggml.merges", str) if "tokenizer.ggml.merges" in metadata.values else [],
        added,
        way.document(),
        normalizer=way.normalizer,
        ignore_merges=way.whole_first,
        post_processor=_template(metadata, tokens, False),
    )


def _template(metadata: Metadata, tokens: Sequence[str], adds_bos: bool) -> dict[str, Any] | None:
    """Returns the post-processor that adds begin and end tokens to a text, or None if the model expects neither."""
    wanted = {
        role: metadata.get(f"tokenizer.ggml.add_{role}_token", bool, role == "bos" and adds_bos) for role in _ENDS
    }
    found = {role: metadata.id_of(role) for role in _ENDS if wanted[role]}
    ids = {role: token_id for role, token_id in found.items() if token_id is not None and token_id < len(tokens)}
    if not ids:
        return None
    single: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    special = {}
    for role, token_id in ids.items():
        name = tokens[token_id]
        single.insert(0 if role == "bos" else len(single), {"SpecialToken": {"id": name, "type_id": 0}})
        special[name] = {"id": name, "ids": [token_id], "tokens": [name]}
    pair = [*single, *json.loads(json.dumps(single).replace('"A"', '"B"').replace('"type_id": 0', '"type_id": 1'))]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def _way_to_cut(metadata: Metadata, options: ReadOptions) -> PreTokenizer:
    if options.pattern is not None:
        return PreTokenizer(options.pattern)
    name = metadata.get("tokenizer.ggml.pre", str)
    if name not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"{metadata.path}: unsupported `tokenizer.ggml.pre`: must be one of {sorted(PRE_TOKENIZERS)}, "
            f"got {name!r}\nhint: pass `pattern`, a name or a regular expression"
        )
    return PRE_TOKENIZERS[name]


def _sentence_piece(metadata: Metadata) -> dict[str, Any]:
    tokens = metadata.tokens()
    types = metadata.types(len(tokens))
    scores = metadata.items("tokenizer.ggml.scores", float)
    metadata.check_len("tokenizer.ggml.scores", scores, len(tokens))
    has_prefix = metadata.get("tokenizer.ggml.add_space_prefix", bool, True)
    unknown = metadata.id_of("unknown") or 0
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if has_prefix:
        steps.insert(0, {"type": "Prepend", "prepend": _SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model = {
        "type": "BPE",
        "unk_token": tokens[unknown] if unknown < len(tokens) else None,
        "fuse_unk": True,
        "byte_fallback": BYTE in types,
        "vocab": {token: token_id for token_id, token in enumerate(tokens)},
        "merges": merges_from_scores(tokens, types, scores),
    }
    return {
        "added_tokens": _added(tokens, types, _roles(metadata)),
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": _template(metadata, tokens, True),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def merges_from_scores(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Returns merges in SentencePiece's order: all pairs of tokens that form a token, with the best score first."""
    ids = {token: index for index, token in enumerate(tokens) if types[index] in (NORMAL, USER_DEFINED)}
    merges = []
    for token, index in ids.items():
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [(ids[left], ids[right]) for left, right in cuts if left in ids and right in ids]
        merges += [(-scores[index], left, right) for left, right in sorted(known)]
    merges.sort(key=lambda merge: merge[0])
    return [(tokens[left], tokens[right]) for _, left, right in merges]
