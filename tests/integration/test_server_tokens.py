"""`/tokenize`, `/detokenize` and `/tokenizer_info` on a real server."""

import httpx
import pytest

from llm.tokenization import BPETokenizer, encode_chat
from tests.integration.server_client import CONTEXT, MESSAGES, chat

TEXT = "To be 🙂 or <|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return BPETokenizer.from_pretrained(checkpoint)


def post(server, path, **body):
    return httpx.post(f"{server.url}{path}", json=body, trust_env=False)


def test_tokens_of_a_text_and_back(server, tokenizer):
    answer = post(server, "/tokenize", prompt=TEXT, model="tiny").json()
    ids = tokenizer.encode(TEXT, allow_special=True)
    assert answer == {"count": len(ids), "max_model_len": CONTEXT, "tokens": ids, "token_strs": None}
    assert post(server, "/detokenize", tokens=ids).json() == {"prompt": TEXT}


def test_special_tokens_can_be_read_as_plain_text(server, tokenizer):
    answer = post(server, "/tokenize", prompt=TEXT, parse_special=False).json()
    assert answer["tokens"] == tokenizer.encode(TEXT)


def test_tokens_are_named_by_text_or_bytes(server):
    answer = post(server, "/tokenize", prompt="To 🙂", return_token_strs=True).json()
    names = answer["token_strs"]
    assert len(names) == answer["count"]
    assert names[-4:] == ["bytes:\\xf0", "bytes:\\x9f", "bytes:\\x99", "bytes:\\x82"]


def test_tokens_of_a_conversation_are_those_of_a_chat(server, client, tokenizer):
    answer = post(server, "/tokenize", messages=MESSAGES).json()
    assert answer["tokens"] == encode_chat(tokenizer, MESSAGES)
    assert answer["count"] == chat(client, max_tokens=1).usage.prompt_tokens
    closed = post(server, "/tokenize", messages=MESSAGES, add_generation_prompt=False).json()
    assert closed["tokens"] == encode_chat(tokenizer, MESSAGES, add_generation_prompt=False)


def test_info_names_special_tokens_and_the_template(server, tokenizer):
    info = httpx.get(f"{server.url}/tokenizer_info", trust_env=False).json()
    settings = tokenizer.settings
    assert info["eos_token"] == settings.eos_tokens[0]
    assert info["bos_token"] == settings.bos_token
    assert info["chat_template"] == settings.chat_template
    assert (info["vocab_size"], info["model_max_length"]) == (tokenizer.vocab_size, CONTEXT)
    eos = post(server, "/tokenize", prompt=info["eos_token"], add_special_tokens=False).json()
    assert eos["tokens"] == [tokenizer.eos_ids[0]]


@pytest.mark.parametrize(
    ("path", "body", "param", "status"),
    [
        ("/tokenize", {}, "prompt", 400),
        ("/tokenize", {"prompt": "x", "messages": MESSAGES}, "prompt", 400),
        ("/tokenize", {"prompt": "x", "model": "other"}, "model", 404),
        ("/tokenize", {"prompt": 5}, "prompt", 400),
        ("/detokenize", {"tokens": [10**6]}, "tokens", 400),
        ("/detokenize", {"tokens": "x"}, "tokens", 400),
        ("/detokenize", {}, "tokens", 400),
    ],
)
def test_bad_requests_are_refused_by_name(server, path, body, param, status):
    answer = post(server, path, **body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param
