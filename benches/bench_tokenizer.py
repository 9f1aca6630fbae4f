"""What a user pays to tokenize, ours and tiktoken's with the same vocabulary. Equal ids are asserted before timing."""

import random

import pytest
import tiktoken
from pytest_benchmark.fixture import BenchmarkFixture
from tests.reference.bpe import PATTERNS

from llm.tokenization import BPETokenizer

COMMON = (
    "the of and to in a is that for it was on are as with they at be this from have or by one had not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so"
)
WORDS = COMMON.split()


def generated_text(num_words: int) -> str:
    """Sentences of common words with names and numbers between: the same text each time."""
    draw = random.Random(0)
    words = (
        draw.choice(WORDS) if draw.random() < 0.8 else f"{draw.choice(WORDS).title()}{draw.randrange(2000)}"
        for _ in range(num_words)
    )
    return " ".join(word + draw.choice(["", "", "", "", ",", ".\n"]) for word in words)


TOKENIZER = BPETokenizer.train_from_iterator([generated_text(50_000)], vocab_size=1_000, progress=False)
TIKTOKEN = tiktoken.Encoding(
    "twin",
    pat_str=PATTERNS["gpt4"],
    mergeable_ranks={token: rank for rank, token in enumerate(TOKENIZER.token_bytes()[:-1]) if token is not None},
    special_tokens=TOKENIZER.special_tokens,
)
TEXTS = {
    "10 words": generated_text(10),
    "1,000 words": generated_text(1_000),
    "10,000 words": generated_text(10_000),
    "one piece": "them" * 2_500,
}
ENCODERS = {
    "llm encode": TOKENIZER.encode,
    "llm encode_to_numpy": TOKENIZER.encode_to_numpy,
    "tiktoken encode_ordinary": TIKTOKEN.encode_ordinary,
    "tiktoken encode_to_numpy": TIKTOKEN.encode_to_numpy,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_encode(benchmark: BenchmarkFixture, encoder: str, text: str) -> None:
    assert list(ENCODERS[encoder](text)) == TIKTOKEN.encode_ordinary(text)
    benchmark.extra_info["bytes"] = len(text.encode())
    benchmark(ENCODERS[encoder], text)


@pytest.mark.parametrize("name", ["llm", "tiktoken"])
def test_encode_batch(benchmark: BenchmarkFixture, name: str) -> None:
    texts = [TEXTS["1,000 words"]] * 64
    encode = TOKENIZER.encode_batch if name == "llm" else TIKTOKEN.encode_ordinary_batch
    assert [list(ids) for ids in encode(texts)] == TIKTOKEN.encode_ordinary_batch(texts)
    benchmark.extra_info["bytes"] = sum(len(text.encode()) for text in texts)
    benchmark(encode, texts)


@pytest.mark.parametrize("name", ["llm", "tiktoken"])
def test_decode(benchmark: BenchmarkFixture, name: str) -> None:
    text = TEXTS["10,000 words"]
    ids = TOKENIZER.encode(text)
    decode = TOKENIZER.decode if name == "llm" else TIKTOKEN.decode
    assert decode(ids) == text
    benchmark.extra_info["bytes"] = len(text.encode())
    benchmark(decode, ids)


def test_train(benchmark: BenchmarkFixture) -> None:
    texts = [generated_text(50_000)]
    benchmark.extra_info["bytes"] = len(texts[0].encode())
    benchmark.pedantic(BPETokenizer.train_from_iterator, (texts,), {"vocab_size": 1_000, "progress": False}, rounds=3)
