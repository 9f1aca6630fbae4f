"""The character tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from tokenizers import Tokenizer as HuggingFaceTokenizer
from transformers import AutoTokenizer

from llm.errors import InvalidArgumentError, TokenizerError
from llm.tokenization import SimpleCharacterTokenizer, load_tokenizer
from tests.unit.tokenization_samples import SAMPLES, TRAINING_TEXT, texts


def test_ids_are_characters_then_special_tokens() -> None:
    tokenizer = SimpleCharacterTokenizer.train("banana\né")
    assert tokenizer.encode("né\nz") == [3, 4, 0, 5]
    assert tokenizer.special_tokens == {"<|unk|>": 5, "<|endoftext|>": 6}
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (7, 6, (6,), None)
    assert tokenizer.token_bytes() == [b"\n", b"a", b"b", b"n", "é".encode(), b"<|unk|>", b"<|endoftext|>"]
    assert tokenizer.decode([3, 4, 5]) == "né<|unk|>"
    assert tokenizer.decode(np.array([3, 4, 5], np.uint32), skip_special_tokens=True) == "né"


def test_special_tokens_come_only_when_allowed() -> None:
    tokenizer = SimpleCharacterTokenizer.train("a<|>endoftx")
    text = "a<|endoftext|>a"
    assert tokenizer.encode(text, allow_special=True) == [*tokenizer.encode("a"), 12, *tokenizer.encode("a")]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert 12 not in tokenizer.encode(text)


@given(text=texts())
def test_text_of_known_characters_round_trips(text: str) -> None:
    tokenizer = SimpleCharacterTokenizer.train(text + "a")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) == len(text)


def test_saved_tokenizer_gives_equal_ids_in_hugging_face(tmp_path: Path) -> None:
    tokenizer = SimpleCharacterTokenizer.train(TRAINING_TEXT)
    tokenizer.save(tmp_path)
    tokenizers = HuggingFaceTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, SimpleCharacterTokenizer)
    assert again.settings == tokenizer.settings
    for text in SAMPLES.values():
        ids = tokenizer.encode(text, allow_special=True)
        assert tokenizers.encode(text).ids == ids
        assert auto(text)["input_ids"] == ids
        assert again.encode(text, allow_special=True) == ids
        assert auto.decode(ids) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, r"unsupported `normalizer`: must be None"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, r"unsupported `pre_tokenizer`"),
        ({"decoder": None}, r"unsupported `decoder`"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0, "<|unk|>": 2}}}, r"ids of `model\.vocab` must be 0 to 1"),
        (
            {"model": {"type": "WordLevel", "vocab": {"word": 0, "<|unk|>": 1, "<|endoftext|>": 2}}},
            r"characters must be one",
        ),
        ({"model": {"type": "WordLevel", "vocab": ["a"]}}, r"unsupported `model`: must be WordLevel with a vocabulary"),
    ],
)
def test_unsupported_components_are_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    document = json.loads(SimpleCharacterTokenizer.train("ab").to_json()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def test_bad_input_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"`text` must have at least one character"):
        SimpleCharacterTokenizer.train("")
    with pytest.raises(InvalidArgumentError, match=r"without lone surrogates, got one at index 1"):
        SimpleCharacterTokenizer.train("a\ud800")
    with pytest.raises(TokenizerError, match=r"must have '<\|unk\|>', got \['<a>'\]"):
        SimpleCharacterTokenizer.train("a", special_tokens=["<a>"])
    with pytest.raises(TokenizerError, match=r"got duplicates of \['<a>'\]"):
        SimpleCharacterTokenizer.train("a", special_tokens=["<|unk|>", "<a>", "<a>"])
    with pytest.raises(TokenizerError, match=r"two characters or more"):
        SimpleCharacterTokenizer.train("a", special_tokens=["<|unk|>", "b"])
    tokenizer = SimpleCharacterTokenizer.train("ab")
    for bad in (-1, 4):
        with pytest.raises(InvalidArgumentError, match=rf"\(0 to 3\), got {bad} at index 1"):
            tokenizer.decode([0, bad])
