"""Keyword options of all encoding methods."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from llm import _rust
from llm.errors import InvalidArgumentError

TokenIds: TypeAlias = Sequence[int] | NDArray[np.uint32]
Side: TypeAlias = Literal["left", "right"]
SIDES: tuple[Side, ...] = ("left", "right")


class EncodeOptions(TypedDict, total=False):
    """Encoding options. By default, all text is plain, so untrusted input cannot inject a control token.

    Attributes:
        allowed_special: Special tokens that become their id where the text has them, or `"all"`. The text of all others
            is encoded like any other.
        disallowed_special: Texts that are an error, or `"all"` special tokens that are not allowed. As in tiktoken,
            except that there `"all"` is disallowed without asking.
        allow_special: True is `allowed_special="all"`.
        add_bos: Begin with `bos_id`.
        add_eos: End with the first of `eos_ids`.
        max_length: The most ids of a text, BOS and EOS included: these stay, the text's own are cut. None: no limit.
        truncation: The side that is cut.
    """

    allowed_special: Collection[str] | Literal["all"]
    disallowed_special: Collection[str] | Literal["all"]
    allow_special: bool
    add_bos: bool
    add_eos: bool
    max_length: int | None
    truncation: Side


class PadOptions(TypedDict, total=False):
    """Padding options.

    Attributes:
        padding_side: Where rows are filled up; a decoder that goes on generating wants `"left"`.
        pad_to_length: Length of the rows; None: the longest one's. A longer row is an error, see `max_length`.
        pad_to_multiple_of: Round the length up to a multiple of this, as tensor cores like it.
        pad_id: The id to fill up with; None: the tokenizer's own.
    """

    padding_side: Side
    pad_to_length: int | None
    pad_to_multiple_of: int | None
    pad_id: int | None


class PaddedEncodeOptions(EncodeOptions, PadOptions, total=False):
    """Encoding and padding options together."""


class Encoding(NamedTuple):
    """A text's ids and each token's offsets; added BOS and EOS tokens have the offsets (0, 0)."""

    ids: NDArray[np.uint32]  # (T,)
    byte_offsets: NDArray[np.int64]  # (T, 2): start and end in the text's UTF-8
    char_offsets: NDArray[np.int64]  # (T, 2): start and end in code points; half a character counts as all of it


class FlatIds(NamedTuple):
    """Ids of several texts in one array; text `i` is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: NDArray[np.uint32]  # (T of all texts,)
    offsets: NDArray[np.int64]  # (B + 1,)


def check_names(options: Mapping[str, object], allowed: type) -> None:
    """Refuses unknown options.

    Raises:
        TypeError: Naming the option and the valid ones, as Python does for unknown keyword arguments.
    """
    unknown = sorted(options.keys() - allowed.__annotations__.keys())
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; options are {', '.join(sorted(allowed.__annotations__))}")


def encode_plan(
    options: EncodeOptions, special_tokens: Mapping[str, int], template: tuple[list[int], list[int]]
) -> _rust.EncodePlan:
    """What `options` mean for a tokenizer with these special tokens and these ids before and after a text.

    Raises:
        InvalidArgumentError: A value outside what is allowed.
        TypeError: An unknown option.
    """
    check_names(options, EncodeOptions)
    allowed = _names("allowed_special", options.get("allowed_special", ()), special_tokens)
    unknown = sorted(allowed - special_tokens.keys())
    if unknown:
        raise InvalidArgumentError(
            f"`allowed_special` must be special tokens ({sorted(special_tokens)}) or 'all', got {unknown[0]!r}"
        )
    allow_all = bool(options.get("allow_special")) or allowed == special_tokens.keys()
    allowed = set(special_tokens) if allow_all else allowed
    disallowed = _names("disallowed_special", options.get("disallowed_special", ()), special_tokens)
    if options.get("disallowed_special") == "all":
        disallowed -= allowed
    return _rust.EncodePlan(
        allowed={token: special_tokens[token] for token in allowed},
        allow_all=allow_all,
        disallowed=sorted(disallowed),
        template=template,
        max_length=_positive("max_length", options.get("max_length"), 0),
        truncate_left=side("truncation", options.get("truncation", "right")) == "left",
    )


def side(name: str, value: str) -> str:
    """`value`, if it is a side.

    Raises:
        InvalidArgumentError: It is not.
    """
    if value not in SIDES:
        raise InvalidArgumentError(f"`{name}` must be one of {list(SIDES)}, got {value!r}")
    return value


def length(name: str, value: int | None) -> int | None:
    """`value`, if it is a length of 1 or more, or None.

    Raises:
        InvalidArgumentError: It is not.
    """
    return _positive(name, value, 1)


def text_list(texts: Iterable[str]) -> list[str]:
    """The texts of a batch.

    Raises:
        InvalidArgumentError: It is one text.
    """
    if isinstance(texts, str):
        raise InvalidArgumentError("`texts` must be a collection of texts, got one `str`\nhint: pass `[text]`")
    return texts if isinstance(texts, list) else list(texts)


def hashable(value: object) -> object:
    """The value of an option as part of a key."""
    return frozenset(value) if isinstance(value, Collection) and not isinstance(value, str) else value


def _positive(name: str, value: Any, least: int) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise InvalidArgumentError(f"`{name}` must be a whole number from {least} on or None, got {value!r}")
    return value


def _names(name: str, value: Any, special_tokens: Mapping[str, int]) -> set[str]:
    if value == "all":
        return set(special_tokens)
    # One text is a collection of its characters too: never what was meant.
    if isinstance(value, str | bytes) or not isinstance(value, Collection):
        raise InvalidArgumentError(
            f"`{name}` must be 'all' or a collection of special tokens, got {value!r}\nhint: pass `{{{value!r}}}`"
        )
    names = set(value)
    wrong = [entry for entry in names if not isinstance(entry, str)]
    if wrong:
        raise InvalidArgumentError(f"`{name}` must have `str` entries, got {wrong[0]!r}")
    return names
