"""Parameters of requests, each seen in the prompt or in the answer, on a server with its own settings."""

import openai
import pytest

from llm.serving import ServerConfig, ServerHandle
from llm.tokenization import BPETokenizer, ChatTemplate
from tests.integration.server_client import CONTEXT, chat, complete, write_checkpoint

# Writes what a request hands to the template, then the conversation in ChatML.
TEMPLATE = """\
{%- set thinks = enable_thinking if enable_thinking is defined else 'none' %}
{{- '[' ~ (reasoning_effort or '') ~ '|' ~ (verbosity or '') ~ '|' ~ thinks ~ '|' ~ (mood or '') ~ ']' }}
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
    config = ServerConfig(port=0, default_max_tokens=DEFAULT_MAX_TOKENS, served_model_name=("tiny", "alias"))
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


def prompt_of(client, checkpoint, **request):
    """The prompt that a chat request becomes, as text."""
    extra = {"return_token_ids": True} | request
    answer = chat(client, max_tokens=1, extra_body=extra)
    return BPETokenizer.from_pretrained(checkpoint).decode(answer.model_extra["prompt_token_ids"])


SAID = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]
BRIEF = [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]


@pytest.mark.parametrize(
    ("request_", "prompt"),
    [
        ({}, "[||none|]<|user|>Hi<end><|assistant|>"),
        ({"reasoning_effort": "low"}, "[low||True|]<|user|>Hi<end><|assistant|>"),
        ({"reasoning_effort": "none"}, "[none||False|]<|user|>Hi<end><|assistant|>"),
        ({"verbosity": "high"}, "[|high|none|]<|user|>Hi<end><|assistant|>"),
        ({"chat_template_kwargs": {"mood": "glad"}}, "[||none|glad]<|user|>Hi<end><|assistant|>"),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
            "[low||False|]<|user|>Hi<end><|assistant|>",
        ),
        ({"documents": [{"title": "T", "text": "x"}]}, "[||none|]<T><|user|>Hi<end><|assistant|>"),
        ({"add_generation_prompt": False}, "[||none|]<|user|>Hi<end>"),
        ({"continue_final_message": True, "messages": SAID}, "[||none|]<|user|>Hi<end><|assistant|>Well, "),
        (
            {"continue_final_message": False, "messages": SAID},
            "[||none|]<|user|>Hi<end><|assistant|>Well, <end><|assistant|>",
        ),
        (
            {"messages": [{"role": "developer", "content": BRIEF}]},
            "[||none|]<|system|>Be\nbrief<end><|assistant|>",
        ),
    ],
)
def test_prompt_shows_what_the_template_got(client, checkpoint, request_, prompt):
    request_ = {"messages": SAID[:1]} | request_
    assert prompt_of(client, checkpoint, **request_) == prompt


@pytest.mark.parametrize(
    ("request_", "param", "message"),
    [
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
            "contradict each other",
        ),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs", "hint: send it at the top level"),
        ({"reasoning_effort": "much"}, "reasoning_effort", "must be one of none, minimal, low, medium, high"),
        ({"verbosity": "loud"}, "verbosity", 'must be one of low, medium, high, got "loud"'),
        ({"documents": ["text"]}, "documents[0]", "expected `object`, got `str`"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs", "expected `object | null`, got `str`"),
    ],
)
def test_template_parameters_of_wrong_values_are_refused(client, request_, param, message):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, extra_body=request_)
    assert caught.value.param == param
    assert message in caught.value.message


def test_continued_message_goes_on_as_a_plain_prompt_would(client, checkpoint):
    goes_on = {"continue_final_message": True, "messages": SAID, "ignore_eos": True}
    prompt = prompt_of(client, checkpoint, **goes_on)
    plain = complete(client, prompt=prompt, extra_body={"ignore_eos": True, "add_special_tokens": False})
    assert chat(client, extra_body=goes_on).choices[0].message.content == plain.choices[0].text


def test_chat_returns_token_ids_whole_and_streamed(client, checkpoint):
    tokenizer = BPETokenizer.from_pretrained(checkpoint)
    extra = {"return_token_ids": True, "ignore_eos": True}
    whole = chat(client, n=2, extra_body=extra)
    ids = [choice.model_extra["token_ids"] for choice in whole.choices]
    assert [len(found) for found in ids] == [24, 24]
    assert tokenizer.decode(ids[0]) == whole.choices[0].message.content
    chunks = list(chat(client, n=2, extra_body=extra, stream=True))
    assert chunks[0].model_extra["prompt_token_ids"] == whole.model_extra["prompt_token_ids"]
    assert all("prompt_token_ids" not in chunk.model_extra for chunk in chunks[1:])
    streamed = [[], []]
    for chunk in chunks:
        streamed[chunk.choices[0].index] += chunk.choices[0].model_extra.get("token_ids", [])
    assert streamed == ids
    assert "token_ids" not in chat(client).choices[0].model_extra


def test_completion_returns_token_ids_of_each_prompt_whole_and_streamed(client, checkpoint):
    tokenizer = BPETokenizer.from_pretrained(checkpoint)
    request = {"prompt": ["To be", "question"], "n": 2, "extra_body": {"return_token_ids": True, "ignore_eos": True}}
    whole = complete(client, **request)
    prompts = [tokenizer.decode(choice.model_extra["prompt_token_ids"]) for choice in whole.choices]
    assert prompts == ["To be", "To be", "question", "question"]
    streamed = [{"token_ids": [], "prompt_token_ids": []} for _ in range(4)]
    for chunk in complete(client, stream=True, **request):
        choice = chunk.choices[0]
        for name in streamed[choice.index]:
            streamed[choice.index][name] += choice.model_extra.get(name, [])
    assert streamed == [choice.model_extra for choice in whole.choices]
    assert [tokenizer.decode(found["token_ids"]) for found in streamed] == [choice.text for choice in whole.choices]


def test_usage_counts_the_prompt_tokens_that_the_prefix_cache_held(client):
    prompt = "that is the question " * 9
    first, again = (complete(client, prompt=prompt, max_tokens=2).usage for _ in range(2))
    assert first.prompt_tokens_details.cached_tokens == 0
    assert again.prompt_tokens_details.cached_tokens == (again.prompt_tokens - 1) // 16 * 16 > 0
    assert again.completion_tokens_details.reasoning_tokens == 0
    several = complete(client, prompt=[prompt, prompt], n=2, max_tokens=2).usage
    assert several.prompt_tokens_details.cached_tokens == 2 * again.prompt_tokens_details.cached_tokens
    *_, last = complete(client, prompt=prompt, max_tokens=2, stream=True, stream_options={"include_usage": True})
    assert last.usage == again


def test_answer_names_the_model_as_the_request_did(client):
    assert [model.id for model in client.models.list()] == ["tiny", "alias"]
    assert complete(client, model="alias").model == "alias"
    assert {chunk.model for chunk in chat(client, model="alias", stream=True)} == {"alias"}
    assert complete(client, model="alias").choices[0].text == complete(client).choices[0].text


def test_context_overflow_tells_the_numbers(client):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, prompt=[1] * 100, max_tokens=CONTEXT)
    assert caught.value.code == "context_length_exceeded"
    assert all(number in caught.value.message for number in ("100", str(CONTEXT)))
