"""Parameters of requests, each seen in the prompt or in the answer, on a server with its own settings."""

import openai
import pytest

from llm.serving import ServerConfig, ServerHandle
from llm.tokenization import ChatTemplate
from tests.integration.server_client import CONTEXT, chat, complete, write_checkpoint

# Writes what a request hands to the template, then the conversation in ChatML.
TEMPLATE = """\
{%- for name in ['effort', 'verbosity', 'enable_thinking', 'mood'] %}{% endfor %}
{{- '[' ~ (reasoning_effort or '') ~ '|' ~ (verbosity or '') ~ '|' ~ enable_thinking ~ '|' ~ (mood or '') ~ ']' }}
{%- for document in documents or [] %}{{ '<' ~ document['title'] ~ '>' }}{% endfor %}
{%- for message in messages %}
{{- '<|' ~ message['role'] ~ '|>' ~ message['content'] ~ '<end>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
DEFAULT_MAX_TOKENS = 5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    template = ChatTemplate(TEMPLATE, stop=("<end>",))
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", template)


@pytest.fixture(scope="module")
def server(checkpoint):
    config = ServerConfig(port=0, default_max_tokens=DEFAULT_MAX_TOKENS)
    with ServerHandle(checkpoint, config) as handle:
        yield handle


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0, timeout=60)


def text_of(client, **extra):
    return complete(client, extra_body={"ignore_eos": True} | extra).choices[0].text


def test_top_k_of_minus_one_keeps_all_tokens(client):
    assert text_of(client, top_k=-1) == text_of(client, top_k=0) != text_of(client, top_k=1)


def test_top_p_of_zero_takes_the_likeliest_token(client):
    assert text_of(client, top_p=0, seed=1) == text_of(client, top_p=0, seed=2) == text_of(client, temperature=0)


def test_seed_may_be_any_signed_integer_of_64_bits(client):
    texts = {seed: text_of(client, seed=seed) for seed in (-(2**63), -3, -2, 2**63 - 1)}
    assert texts == {seed: text_of(client, seed=seed) for seed in texts}
    assert len(set(texts.values())) == 4


def test_seed_of_minus_one_draws_a_fresh_seed(client):
    assert len({text_of(client, seed=-1) for _ in range(4)}) > 1


def test_stop_takes_32_texts(client):
    text = text_of(client)
    stop = [f"never {number}" for number in range(31)] + [text[5:8]]
    assert complete(client, stop=stop, extra_body={"ignore_eos": True}).choices[0].text == text[: text.index(text[5:8])]


def test_chat_without_a_limit_gets_the_servers_default(client):
    endless = {"max_tokens": openai.omit, "extra_body": {"ignore_eos": True}}
    answer = chat(client, **endless)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (DEFAULT_MAX_TOKENS, "length")
    assert chat(client, **endless | {"max_tokens": 9}).usage.completion_tokens == 9
    long = [{"role": "user", "content": "x" * (CONTEXT - 60)}]
    room = CONTEXT - chat(client, messages=long, max_tokens=1).usage.prompt_tokens
    crowded = [{"role": "user", "content": "x" * (CONTEXT - 60 + room - 2)}]
    assert chat(client, messages=crowded, **endless).usage.completion_tokens == 2
