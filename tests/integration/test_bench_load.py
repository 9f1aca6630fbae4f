"""The serving bench's load generator on a real server: what it counts is what was asked for."""

import asyncio
import sys
from pathlib import Path

import pytest

from llm.serving import ServerConfig, ServerHandle
from llm.tokenization import encode_chat, load_tokenizer
from tests.fetch_data import CACHE
from tests.integration.server_client import write_checkpoint

sys.path.append(str(Path(__file__).parents[2] / "benches" / "peers"))

import prompts
from figures import LoadError
from load import Load, drive


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", "play")


@pytest.fixture(scope="module")
def server(checkpoint):
    with ServerHandle(checkpoint, ServerConfig(port=0)) as handle:
        yield handle


def load_for(server, conversations, **changes):
    port = int(server.base_url.removesuffix("/v1").rsplit(":", 1)[1])
    return Load(**{"port": port, "model": "tiny", "clients": 4, "conversations": conversations} | changes)


def test_load_counts_every_token_in_the_order_of_the_conversations(checkpoint, server):
    tokenizer = load_tokenizer(checkpoint)
    conversations = [[{"role": "user", "content": "to be " * (1 + idx)}] for idx in range(9)]
    seconds, answers = asyncio.run(drive(load_for(server, conversations, output_tokens=12)))
    assert [answer.output_tokens for answer in answers] == [12] * 9
    expected = [len(encode_chat(tokenizer, messages, add_generation_prompt=True)) for messages in conversations]
    assert [answer.prompt_tokens for answer in answers] == expected
    assert all(0 < answer.first_token_s < seconds for answer in answers)
    assert all(0 <= answer.inter_token_s * 11 < seconds for answer in answers)


def test_load_gives_the_same_answers_alone_and_together(server):
    conversations = [[{"role": "user", "content": f"question {idx}"}] for idx in range(6)]
    alone = asyncio.run(drive(load_for(server, conversations, output_tokens=8, clients=1)))[1]
    together = asyncio.run(drive(load_for(server, conversations, output_tokens=8, clients=6)))[1]
    assert [answer.text for answer in alone] == [answer.text for answer in together]


def test_load_refused_by_the_server_says_why(server):
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(drive(load_for(server, [[{"role": "user", "content": "x"}]] * 4, output_tokens=100_000)))
    assert caught.group_contains(LoadError, match="400 Bad Request")


def test_load_of_a_server_that_is_not_there_fails(server):
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(drive(load_for(server, [[{"role": "user", "content": "x"}]], output_tokens=1, port=1)))
    assert caught.group_contains(ConnectionError)


def test_conversations_are_as_long_as_asked_for_and_differ_by_seed():
    tokenizer = load_tokenizer(CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf")
    texts = set()
    for seed in map(str, range(20)):
        messages = prompts.conversation(tokenizer, 142, seed)
        assert len(encode_chat(tokenizer, messages, add_generation_prompt=True)) == 142
        texts.add(messages[0]["content"])
        assert messages == prompts.conversation(tokenizer, 142, seed)
    assert len(texts) == 20
    system = prompts.system_prompt(1000, "0")
    shared = prompts.conversation(tokenizer, 1048, "0", system)
    assert shared[0] == {"role": "system", "content": system}
    assert len(encode_chat(tokenizer, shared, add_generation_prompt=True)) == 1048
    with pytest.raises(ValueError, match="no conversation has 5 tokens"):
        prompts.conversation(tokenizer, 5, "0")


def test_offline_lengths_span_what_was_asked_for():
    ids, lengths = prompts.offline_workload(2000, 4, 1000)
    assert (min(map(len, ids)), max(map(len, ids))) == (25, 256)
    assert (min(lengths), max(lengths)) == (25, 256)
    assert all(0 <= token_id < 1000 for prompt in ids for token_id in prompt)
    assert prompts.offline_workload(2000, 4, 1000) == (ids, lengths)
