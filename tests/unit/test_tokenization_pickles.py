"""Pickled tokenizers: plain values only, and only where asked for."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from llm.errors import TokenizerError
from llm.tokenization import (
    load_tokenizer,
)
from tests.unit.tokenization_samples import RANKS, assert_same, tiktoken_twin, trained


class Attack:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch should_not_exist",)


def test_pickles_are_read_only_where_allowed(tmp_path: Path) -> None:
    tokenizer = trained("gpt4")
    file = tmp_path / "tokenizer.pkl"
    file.write_bytes(pickle.dumps(tiktoken_twin("gpt4")))
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.pkl: is a pickle, which is read only with `allow_pickle=True`"
    ):
        load_tokenizer(file)
    again = load_tokenizer(file, allow_pickle=True)
    assert again.special_tokens == tokenizer.special_tokens
    assert_same(again, tokenizer)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_plain_values_are_read(protocol: int, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.pickle"
    state = {"mergeable_ranks": RANKS, "pattern": "gpt4", "special_tokens": {"<|e|>": 258}}
    # Before protocol 3, bytes are made by calling `_codecs.encode`: a class that is refused.
    file.write_bytes(pickle.dumps(state, protocol))
    if protocol < 3:
        with pytest.raises(TokenizerError, match=r"rejected class `_codecs\.encode`"):
            load_tokenizer(file, allow_pickle=True)
        return
    assert load_tokenizer(file, allow_pickle=True).encode("abc<|e|>", allow_special=True) == [257, 258]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pickle.dumps(Attack()),
            r"rejected class `posix\.system`: a pickled tokenizer may hold plain values and .*\nhint",
        ),
        (pickle.dumps([Attack()], 2), r"rejected class `posix\.system`"),
        (pickle.dumps(Attack(), 0), r"rejected class `posix\.system`"),
        (pickle.dumps(Path("x")), r"rejected class `pathlib\._?\.?"),
        (b"cbuiltins\neval\n(S'1'\ntR.", r"rejected class `builtins\.eval`"),
        (b"\x80\x04Pid\n.", r"rejected persistent id"),
        (pickle.dumps({"mergeable_ranks": RANKS})[:-9], r"must be a whole pickle: "),
        (b"\x80\x04", r"must be a whole pickle: EOFError"),
        (b"\x80\xff.", r"must be a whole pickle: ValueError unsupported pickle protocol: 255"),
        (pickle.dumps([1]), r"must hold a dict with `mergeable_ranks` .*, got list '\[1\]'"),
        (pickle.dumps({"vocab": {}}), r"must hold a dict with `mergeable_ranks` .*, got keys \['vocab'\]"),
        (pickle.dumps({"mergeable_ranks": {"a": 0}, "pattern": "gpt2"}), r"got keys \['mergeable_ranks', 'pattern'\]"),
        (pickle.dumps({"mergeable_ranks": {b"a": 2**70}, "pattern": "gpt2"}), r"ranks must be from 0 to 16777215"),
    ],
)
def test_bad_pickles_are_refused_by_name(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tokenizer.pkl"
    file.write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as raised:
        load_tokenizer(file, allow_pickle=True)
    assert str(raised.value).startswith(str(file))
    assert not (tmp_path / "should_not_exist").exists()
