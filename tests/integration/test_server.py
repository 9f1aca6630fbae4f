"""The server as its users meet it: a tiny seeded model, a real port, OpenAI's own client."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from llm.tokenization import BPETokenizer
from tests.integration.server_client import (
    CONTEXT,
    LONG,
    chat,
    complete,
    is_idle,
    metric,
    tokens_until_idle,
    wait_until,
)


def test_models_are_listed_under_the_directorys_name(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"


def test_completion_counts_its_tokens(client):
    answer = complete(client)
    assert answer.object == "text_completion"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens >= 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24
    assert answer._request_id.startswith("req_")


def test_completion_defaults_to_sixteen_tokens(client):
    request = {"model": "tiny", "prompt": "To be", "extra_body": {"ignore_eos": True}}
    assert client.completions.create(**request).usage.completion_tokens == 16


def test_default_length_is_cut_to_the_context_left(client):
    request = {"model": "tiny", "prompt": [1] * (CONTEXT - 5), "extra_body": {"ignore_eos": True}}
    answer = client.completions.create(**request)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (5, "length")


def test_same_seed_gives_the_same_text_and_another_seed_another(client):
    first, again, other = (complete(client, seed=seed).choices[0].text for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_stream_joins_to_the_whole_answer(client):
    whole = complete(client)
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_chat_stream_joins_to_the_whole_answer(client):
    whole = chat(client)
    chunks = list(chat(client, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert all(delta.role is None for delta in deltas[1:])
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert whole.choices[0].message.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_chat_takes_either_name_of_the_token_limit(client):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = chat(client, **{"max_tokens": openai.omit, name: 3, "extra_body": {"ignore_eos": True}})
        assert answer.usage.completion_tokens <= 3


def test_stop_string_ends_the_text_before_itself(client):
    text = complete(client, max_tokens=60).choices[0].text
    stop = text[20:22]
    answer = complete(client, max_tokens=60, stop=["never\x00seen", stop])
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    streamed = "".join(chunk.choices[0].text for chunk in complete(client, max_tokens=60, stop=stop, stream=True))
    assert streamed == answer.choices[0].text


def test_stop_string_may_be_part_of_the_text(client):
    text = complete(client, max_tokens=60).choices[0].text
    stop = text[20:22]
    body = {"ignore_eos": True, "include_stop_str_in_output": True}
    answer = complete(client, max_tokens=60, stop=stop, extra_body=body)
    assert answer.choices[0].text == text[: text.index(stop) + len(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_allowed_and_biased_tokens_are_the_only_ones_that_come(client, checkpoint):
    tokenizer = BPETokenizer.from_pretrained(checkpoint)
    [be], [question] = tokenizer.encode("b"), tokenizer.encode("q")
    body = {"ignore_eos": True, "allowed_token_ids": [be, question]}
    allowed = complete(client, extra_body=body).choices[0].text
    assert set(allowed) == {"b", "q"}
    assert set(complete(client, logit_bias={str(be): 100}).choices[0].text) == {"b"}
    assert set(complete(client, logit_bias={str(be): -100}, extra_body=body).choices[0].text) == {"q"}
    ended = complete(client, logit_bias={str(be): 100}, extra_body={"stop_token_ids": [be], "min_tokens": 3})
    assert (ended.choices[0].finish_reason, ended.usage.completion_tokens) == ("stop", 4)
    assert "b" not in ended.choices[0].text


def test_typical_p_keeps_fewer_tokens(client):
    drawn = {
        typical_p: {
            complete(client, seed, max_tokens=1, extra_body={"typical_p": typical_p}).choices[0].text
            for seed in range(40)
        }
        for typical_p in (0.05, 1.0)
    }
    assert len(drawn[0.05]) < len(drawn[1.0])


def test_chat_tells_log_probabilities(client):
    whole = chat(client, logprobs=True, top_logprobs=3)
    entries = whole.choices[0].logprobs.content
    assert len(entries) in (whole.usage.completion_tokens, whole.usage.completion_tokens - 1)
    for entry in entries:
        assert bytes(entry.bytes).decode("utf-8", "replace") == entry.token
        assert entry.logprob < 0
        values = [other.logprob for other in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert len(values) == 3
    chunks = list(chat(client, logprobs=True, top_logprobs=3, stream=True))
    streamed = [entry for chunk in chunks if (found := chunk.choices[0].logprobs) for entry in found.content]
    assert streamed == entries
    assert chat(client).choices[0].logprobs is None


def test_completion_tells_log_probabilities_in_columns(client):
    choice = complete(client, logprobs=2, temperature=0, max_tokens=6).choices[0]
    columns = choice.logprobs
    assert len(columns.tokens) == len(columns.token_logprobs) == len(columns.text_offset) == 6
    assert "".join(columns.tokens) == choice.text
    assert columns.text_offset == [len("".join(columns.tokens[:index])) for index in range(6)]
    for token, logprob, top in zip(columns.tokens, columns.token_logprobs, columns.top_logprobs, strict=True):
        assert top[token] == logprob == max(top.values())
    chunks = list(complete(client, logprobs=2, temperature=0, max_tokens=6, stream=True))
    found = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [token for part in found for token in part.tokens] == columns.tokens
    assert [offset for part in found for offset in part.text_offset] == columns.text_offset
    assert complete(client, logprobs=0, max_tokens=2).choices[0].logprobs.top_logprobs is None


def test_several_prompts_get_a_choice_each_like_alone(client):
    alone = [complete(client, prompt=prompt).choices[0].text for prompt in ("To be", "question")]
    together = complete(client, prompt=["To be", "question"])
    assert [choice.index for choice in together.choices] == [0, 1]
    assert [choice.text for choice in together.choices] == alone
    streamed = ["", ""]
    for chunk in complete(client, prompt=["To be", "question"], stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == alone


def texts_by_index(chunks):
    texts = {}
    for chunk in chunks:
        for choice in chunk.choices:
            piece = choice.text if hasattr(choice, "text") else choice.delta.content
            texts[choice.index] = texts.get(choice.index, "") + (piece or "")
    return texts


def test_n_choices_of_each_prompt_have_an_index_each_and_count_their_prompt_once(client):
    prompts = ["To be", "or not"]
    answer = complete(client, prompt=prompts, n=3)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert len({choice.text for choice in answer.choices[:3]}) == 3
    alone = [complete(client, prompt=prompt) for prompt in prompts]
    assert [answer.choices[0].text, answer.choices[3].text] == [one.choices[0].text for one in alone]
    assert answer.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
    assert answer.usage.completion_tokens == 6 * 24
    streamed = texts_by_index(complete(client, prompt=prompts, n=3, stream=True))
    assert streamed == {choice.index: choice.text for choice in answer.choices}


def test_n_choices_of_a_chat(server, client):
    answer = chat(client, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    one = chat(client)
    assert answer.choices[0].message.content == one.choices[0].message.content != answer.choices[1].message.content
    assert answer.usage.prompt_tokens == one.usage.prompt_tokens
    streamed = texts_by_index(chat(client, n=2, stream=True))
    assert streamed == {choice.index: choice.message.content for choice in answer.choices}
    wait_until(lambda: is_idle(server))


def test_a_disconnect_ends_all_choices(server, client):
    stream = complete(client, stream=True, n=4, **LONG)
    assert tokens_until_idle(server, stream) < 4 * LONG["max_tokens"]


def test_a_second_turn_is_found_in_the_prefix_cache(server, client):
    prompt = "To be, or not to be, that is the question. " * 6
    first = complete(client, prompt=prompt).choices[0].text
    hits = metric(server, "llm_prefix_cache_hit_tokens_total")
    again = complete(client, prompt=prompt)
    assert again.choices[0].text == first
    assert metric(server, "llm_prefix_cache_hit_tokens_total") - hits == (again.usage.prompt_tokens - 1) // 16 * 16
    assert metric(server, "llm_blocks_cached") > 0
    assert metric(server, "llm_queued_tokens") == 0


def test_prompt_logprobs_come_with_the_answer(client, checkpoint):
    prompt = BPETokenizer.from_pretrained(checkpoint).encode("To be, or not to be")
    for _ in range(2):  # the second time the prefix cache has the prompt, and must not be read
        answer = complete(client, prompt=prompt, extra_body={"prompt_logprobs": 1, "ignore_eos": True})
        positions = answer.choices[0].model_extra["prompt_logprobs"]
        assert len(positions) == len(prompt)
        assert positions[0] is None
        assert all(str(token) in position for token, position in zip(prompt[1:], positions[1:], strict=True))
    assert answer.choices[0].text == complete(client, prompt=prompt).choices[0].text


def test_prompt_of_token_ids_equals_its_text(client, checkpoint):
    token_ids = BPETokenizer.from_pretrained(checkpoint).encode("To be")
    assert complete(client, prompt=token_ids).choices == complete(client).choices


@pytest.mark.parametrize(
    ("options", "status", "param", "code"),
    [
        ({"model": "other"}, 404, "model", "model_not_found"),
        ({"temperature": 3}, 400, "temperature", None),
        ({"n": 129}, 400, "n", None),
        ({"logit_bias": {"5": 101}}, 400, "logit_bias", None),
        ({"logit_bias": {"5000": 1}}, 400, "logit_bias", None),
        ({"logprobs": 21}, 400, "logprobs", None),
        ({"extra_body": {"allowed_token_ids": [5000]}}, 400, "allowed_token_ids", None),
        ({"extra_body": {"stop_token_ids": [5000]}}, 400, "stop_token_ids", None),
        ({"extra_body": {"typical_p": 1.5}}, 400, "typical_p", None),
        ({"stop": ["x"] * 33}, 400, "stop", None),
        ({"max_tokens": CONTEXT}, 400, "prompt", "context_length_exceeded"),
        ({"prompt": "x " * CONTEXT}, 400, "prompt", "context_length_exceeded"),
        ({"prompt": ""}, 400, "prompt", None),
        ({"prompt": [10**6]}, 400, "prompt", None),
        ({"max_tokens": 4, "extra_body": {"min_tokens": 5}}, 400, "min_tokens", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests_are_refused_before_the_first_event(client, options, status, param, code, stream):
    with pytest.raises(openai.APIStatusError) as caught:
        complete(client, stream=stream, **options)
    assert caught.value.status_code == status
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.body["type"] == "invalid_request_error"


def test_chat_refuses_what_would_change_the_answer(client):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, modalities=["text", "audio"])
    assert (caught.value.param, caught.value.code) == ("modalities", "unsupported_parameter")


def test_malformed_json_is_400(server):
    response = httpx.post(f"{server.base_url}/chat/completions", content=b'{"model": ', trust_env=False)
    assert response.status_code == 400
    assert "not valid JSON" in response.json()["error"]["message"]


def test_body_over_the_limit_is_413(server):
    response = httpx.post(f"{server.base_url}/completions", content=b"x" * (11 * 2**20), trust_env=False)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_concurrent_streams_equal_each_request_alone(server, client):
    def streamed(seed):
        return "".join(chunk.choices[0].text for chunk in complete(client, seed=seed, stream=True))

    alone = [complete(client, seed=seed).choices[0].text for seed in range(32)]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(streamed, range(32)))
    assert together == alone
    wait_until(lambda: is_idle(server))


def test_disconnect_of_a_stream_frees_its_blocks(server, client):
    stream = complete(client, stream=True, **LONG)
    next(iter(stream))
    assert metric(server, "llm_requests_in_flight") == 1
    assert metric(server, "llm_blocks_free") < metric(server, "llm_blocks_total")
    stream.close()
    wait_until(lambda: is_idle(server))


def test_disconnect_while_waiting_for_a_whole_answer_frees_its_blocks(server, client):
    with pytest.raises(openai.APITimeoutError):
        complete(client.with_options(timeout=0.3), **LONG)
    wait_until(lambda: is_idle(server))
    assert metric(server, 'llm_requests_total{route="/v1/completions",status="499"}') >= 1


def test_page_of_another_site_spends_nothing_on_a_server_without_keys(server):
    body = '{"model": "tiny", "prompt": "x", "max_tokens": 1}'
    for headers, code in (
        ({"origin": "http://evil.example"}, "origin_not_allowed"),
        ({"host": "evil"}, "host_not_allowed"),
    ):
        headers |= {"content-type": "text/plain"}
        response = httpx.post(f"{server.base_url}/completions", content=body, headers=headers, trust_env=False)
        assert (response.status_code, response.json()["error"]["code"]) == (403, code)
    own = httpx.post(f"{server.base_url}/completions", content=body, headers={"origin": server.url}, trust_env=False)
    assert own.status_code == 200


def test_request_id_of_the_client_comes_back_and_is_logged(server):
    headers = {"x-request-id": "trace-7f"}
    assert (
        httpx.get(f"{server.base_url}/models", headers=headers, trust_env=False).headers["x-request-id"] == "trace-7f"
    )
    wait_until(lambda: "request_id=trace-7f" in server.log_tail())
