"""`tokenizer.json` of every make: ids and text equal Hugging Face's, before and after it is written again."""

import functools
import json
from pathlib import Path

import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from tokenizers import AddedToken
from tokenizers import Tokenizer as HuggingFaceTokenizer

from llm import _rust
from llm.tokenization import load_tokenizer, write_tokenizer
from tests.unit.test_tokenization_vocabularies import CACHE, DATA, GPT4, ranks_of
from tests.unit.test_tokenization_vocabularies import any_text as any_published_text
from tests.unit.tokenization_files import FLAGGED, MAKES, any_text, byte_level, sentence_piece
from tests.unit.tokenization_samples import SAMPLES

# Takes 10 to 50 seconds; `make check` leaves it out.
pytestmark = pytest.mark.long

SMOLLM = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
LLAMA3 = CACHE / "tokenizer.model"
CL100K = DATA / "derived" / "cl100k_tokenizer.json"


def generated(max_examples: int) -> settings:
    return settings(max_examples=max_examples, deadline=None, suppress_health_check=list(HealthCheck))


@functools.cache
def twins(make: str) -> tuple[HuggingFaceTokenizer, _rust.Tokenizer, HuggingFaceTokenizer, _rust.Tokenizer]:
    """Hugging Face's and ours, and both from what ours writes."""
    theirs = MAKES[make]()
    ours = _rust.Tokenizer.from_json(theirs.to_str())
    written = ours.to_json()
    again = _rust.Tokenizer.from_json(written)
    assert again.to_json() == written
    return theirs, ours, HuggingFaceTokenizer.from_str(written), again


def ids_as_text(tokenizer: HuggingFaceTokenizer, text: str) -> list[int]:
    """Ids with special tokens as ordinary text."""
    tokenizer.encode_special_tokens = True
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    finally:
        tokenizer.encode_special_tokens = False


@pytest.mark.parametrize("make", MAKES)
@generated(150)
@given(text=any_text())
def test_ids_and_text_equal_hugging_face(make: str, text: str) -> None:
    theirs, ours, theirs_again, ours_again = twins(make)
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, allow_special=True) == ids
    assert ours.encode_to_numpy(text, allow_special=True).tolist() == ids
    assert theirs_again.encode(text, add_special_tokens=False).ids == ids
    assert ours_again.encode(text, allow_special=True) == ids
    assert ours.encode(text) == ids_as_text(theirs, text)
    for skip in (False, True):
        assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("make", MAKES)
def test_ids_around_a_text_equal_hugging_face(make: str) -> None:
    theirs, ours, theirs_again, _ = twins(make)
    prefix, suffix = ours.template or ([], [])
    for text in SAMPLES.values():
        ids = [*prefix, *ours.encode(text, allow_special=True), *suffix]
        assert ids == theirs.encode(text).ids == theirs_again.encode(text).ids
    pair = theirs.encode("a", "b")
    assert theirs_again.encode("a", "b").ids == pair.ids


@pytest.mark.parametrize("make", ["llama2", "gemma", "mistral", "metaspace always"])
def test_any_ids_decode_as_hugging_face(make: str) -> None:
    theirs, ours, _, _ = twins(make)
    for start in range(0, ours.vocab_size, 3):
        ids = [(start * 7 + step * 61) % ours.vocab_size for step in range(9)]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False), ids


def test_truncation_and_padding_are_kept_and_change_nothing() -> None:
    theirs = byte_level()
    theirs.enable_truncation(4)
    theirs.enable_padding(length=8, pad_token="<s>", pad_id=1)
    ours = _rust.Tokenizer.from_json(theirs.to_str())
    assert len(ours.encode("a" * 50 + " hello world")) > 4
    before, after = json.loads(theirs.to_str()), json.loads(ours.to_json())
    assert {name: after[name] for name in ("truncation", "padding")} == {
        name: before[name] for name in ("truncation", "padding")
    }


def test_added_tokens_decode_to_their_text() -> None:
    # Hugging Face reads the name of a token as bytes even where it is text: this one comes back as byte 0xE9 there.
    theirs = byte_level(added=[AddedToken("café", normalized=False, special=False), *FLAGGED])
    ours = _rust.Tokenizer.from_json(theirs.to_str())
    ids = ours.encode("un café")
    assert ids == theirs.encode("un café").ids
    assert ours.decode(ids) == "un café"


def test_a_long_text_without_spaces_is_not_quadratic() -> None:
    ours = _rust.Tokenizer.from_json(sentence_piece(added=FLAGGED[:-1]).to_str())
    text = "ab" * 500_000 + "語" * 100_000
    assert ours.decode(ours.encode(text)) == text


def test_text_of_sentence_pieces_is_cut_at_spaces_only_where_no_merge_reaches_over() -> None:
    document = json.loads(sentence_piece().to_str())
    vocab = document["model"]["vocab"]
    vocab["e▁"] = len(vocab)
    vocab["e▁t"] = len(vocab)
    document["model"]["merges"] = [["e", "▁"], ["e▁", "t"], *document["model"]["merges"]]
    theirs = HuggingFaceTokenizer.from_str(json.dumps(document))
    ours = _rust.Tokenizer.from_json(json.dumps(document))
    text = "the tree the  tree"
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert vocab["e▁t"] in ours.encode(text)


@functools.cache
def llama3() -> tuple[tiktoken.Encoding, HuggingFaceTokenizer, _rust.Tokenizer, _rust.Tokenizer]:
    """tiktoken's, Hugging Face's, and ours from the rank file and from Hugging Face's form."""
    if not LLAMA3.is_file():
        pytest.skip(f"{LLAMA3.name} is not here; `make test-data` fetches it")
    ranks = ranks_of(LLAMA3)
    table = {token: rank for rank, token in enumerate(ranks)}
    special = load_tokenizer(LLAMA3).special_tokens
    twin = tiktoken.Encoding("llama3", pat_str=GPT4, mergeable_ranks=table, special_tokens=special)
    ours = _rust.Tokenizer.from_ranks(ranks, special, "llama3")
    document = json.loads(ours.to_json())
    # As transformers converts it: every cut of every token is a merge.
    tokens = ours.token_bytes()
    names = {tokens[token_id]: name for name, token_id in document["model"]["vocab"].items()}
    merges = []
    for token in ranks:
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [(table[left], table[right], left, right) for left, right in cuts if left in table and right in table]
        merges += [[names[left], names[right]] for _, _, left, right in sorted(known)]
    document["model"] |= {"merges": merges, "ignore_merges": True}
    text = json.dumps(document)
    return twin, HuggingFaceTokenizer.from_str(text), ours, _rust.Tokenizer.from_json(text)


@generated(500)
@given(text=any_published_text())
def test_llama3_in_both_forms_equals_tiktoken_and_hugging_face(text: str) -> None:
    twin, theirs, ours, converted = llama3()
    ids = twin.encode(text, allowed_special="all")
    assert ours.encode(text, allow_special=True) == ids
    assert converted.encode(text, allow_special=True) == ids
    assert theirs.encode(text, add_special_tokens=False).ids == ids


def test_llama3_in_hugging_faces_form_is_written_as_metas_file(tmp_path: Path) -> None:
    _, theirs, _, _ = llama3()
    theirs.save(str(tmp_path / "tokenizer.json"))
    write_tokenizer(load_tokenizer(tmp_path), tmp_path / "tokenizer.model", "tiktoken")
    assert (tmp_path / "tokenizer.model").read_bytes() == LLAMA3.read_bytes()


def test_tokens_of_llama3_that_merging_never_makes_equal_tiktoken() -> None:
    twin, _, ours, converted = llama3()
    assert json.loads(ours.to_json())["model"]["ignore_merges"] is True
    for count in range(1, 30):
        for text in (".:" * count, ":." * count, " việc" * count, "việc", "ektedir" * count, "x.:.:.:.:"):
            assert ours.encode(text) == converted.encode(text) == twin.encode_ordinary(text), text


@generated(500)
@given(text=any_text())
def test_smollm2_from_gguf_equals_hugging_face(text: str) -> None:
    ours, theirs = smollm2()
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, allow_special=True) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


@functools.cache
def smollm2() -> tuple[_rust.Tokenizer, HuggingFaceTokenizer]:
    if not SMOLLM.is_file():
        pytest.skip(f"{SMOLLM.name} is not here; `make test-data` fetches it")
    written = load_tokenizer(SMOLLM).to_json()
    return _rust.Tokenizer.from_json(written), HuggingFaceTokenizer.from_str(written)


def test_smollm2_has_its_settings() -> None:
    if not SMOLLM.is_file():
        pytest.skip(f"{SMOLLM.name} is not here; `make test-data` fetches it")
    tokenizer = load_tokenizer(SMOLLM)
    roles = (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id, tokenizer.settings.add_bos_token)
    assert roles == (1, (2,), 2, False)
    assert tokenizer.vocab_size == 49_152
    assert tokenizer.encode("Hello<|im_end|>", allow_special=True) == [19_556, 2]
    assert tokenizer.chat_template is not None
    assert "You are a helpful AI assistant named SmolLM" in tokenizer.chat_template


@pytest.mark.parametrize("name", ["cl100k", "o200k"])
def test_published_files_equal_hugging_face(name: str) -> None:
    file = DATA / "derived" / f"{name}_tokenizer.json"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    text = file.read_text(encoding="utf-8")
    theirs, ours = HuggingFaceTokenizer.from_str(text), _rust.Tokenizer.from_json(text)
    # Special tokens as text: Hugging Face gives them other ids than the file says, for there are gaps before them.
    for sample in SAMPLES.values():
        assert ours.encode(sample) == ids_as_text(theirs, sample)
    corpus = Path(DATA / "corpus" / "django_msgstr_multilingual.txt")
    part = corpus.read_bytes()[:200_000].decode("utf-8", "ignore")
    assert ours.encode(part) == theirs.encode(part, add_special_tokens=False).ids
