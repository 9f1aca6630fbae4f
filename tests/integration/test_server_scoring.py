"""Text completions that score: echoed prompts, log-probabilities of their tokens, the best of several answers."""

import math

import openai
import pytest
import torch

from llm import LLM, SamplingParams
from llm.models import ForwardContext, positions_of
from llm.tokenization import BPETokenizer
from tests.integration.server_client import CONTEXT, complete

PROMPT = "To be, or not"
SPLIT = "To be 🙂 or"  # the vocabulary has no emoji, so four tokens of one byte each


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return BPETokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def local(checkpoint):
    return LLM(checkpoint)


def logprobs_of(local, token_ids):
    """Log-probability of each token after the first, by one plain pass of the model."""
    ids = torch.tensor(token_ids)
    with torch.inference_mode():
        logits = local.engine.runner.model(ids, positions_of([len(ids)]), ForwardContext.for_sequences([len(ids)]))
    return logits[:-1].float().log_softmax(-1).gather(1, ids[1:, None]).squeeze(1).tolist()


def echo(client, **options):
    return complete(client, **{"prompt": PROMPT, "echo": True, "temperature": 0, "max_tokens": 6} | options)


def streamed(chunks):
    """Joins the chunks of one choice to (text, columns, finish reason)."""
    chunks = list(chunks)
    found = [chunk.choices[0] for chunk in chunks if chunk.choices]
    columns = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for choice in found:
        for name, values in columns.items():
            values.extend((getattr(choice.logprobs, name) or []) if choice.logprobs else [])
    return "".join(choice.text for choice in found), columns, found[-1].finish_reason


def test_echo_puts_the_prompt_before_the_answer(client):
    plain = complete(client, prompt=PROMPT, temperature=0, max_tokens=6)
    echoed = echo(client)
    assert echoed.choices[0].text == PROMPT + plain.choices[0].text
    assert echoed.choices[0].logprobs is None
    assert echoed.usage == plain.usage
    assert streamed(echo(client, stream=True))[0] == echoed.choices[0].text


def test_usage_of_a_request_without_new_tokens_counts_cached_ones(client):
    prompt = "What is a prompt that nobody answers? " * 9
    first, again = (complete(client, prompt=prompt, echo=True, max_tokens=0).usage for _ in range(2))
    assert first.prompt_tokens_details.cached_tokens == 0
    assert again.prompt_tokens_details.cached_tokens == (again.prompt_tokens - 1) // 16 * 16 > 0
    # A token whose log-probability is asked for is computed.
    scored = complete(client, prompt=prompt, echo=True, logprobs=1, max_tokens=0).usage
    assert scored.prompt_tokens_details.cached_tokens == 0


def test_echo_scores_the_prompts_tokens_as_the_model_does(client, local, tokenizer):
    choice = echo(client, logprobs=2).choices[0]
    ids = tokenizer.encode(PROMPT)
    columns = choice.logprobs
    assert columns.token_logprobs[0] is None
    assert columns.top_logprobs[0] is None
    assert columns.token_logprobs[1 : len(ids)] == pytest.approx(logprobs_of(local, ids), abs=1e-4)
    assert len(columns.tokens) == len(columns.text_offset) == len(columns.top_logprobs) == len(ids) + 6
    assert "".join(columns.tokens) == choice.text
    assert columns.text_offset == [len("".join(columns.tokens[:at])) for at in range(len(ids) + 6)]
    for token, logprob, top in list(zip(columns.tokens, columns.token_logprobs, columns.top_logprobs, strict=True))[1:]:
        assert top[token] == logprob
    text, streamed_columns, finish_reason = streamed(echo(client, logprobs=2, stream=True))
    assert (text, finish_reason) == (choice.text, "length")
    assert streamed_columns["tokens"] == columns.tokens
    assert streamed_columns["text_offset"] == columns.text_offset
    assert streamed_columns["token_logprobs"][1:] == pytest.approx(columns.token_logprobs[1:], abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_no_new_tokens_only_score_the_prompt(client, local, tokenizer, stream):
    ids = tokenizer.encode(PROMPT)
    answer = echo(client, prompt=ids, max_tokens=0, logprobs=1, stream=stream)
    if stream:
        text, columns, finish_reason = streamed(answer)
    else:
        choice = answer.choices[0]
        text, columns, finish_reason = choice.text, choice.logprobs.model_dump(), choice.finish_reason
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 0)
    assert (text, finish_reason) == (PROMPT, "length")
    assert columns["token_logprobs"][0] is None
    assert columns["token_logprobs"][1:] == pytest.approx(logprobs_of(local, ids), abs=1e-4)


def test_a_prompt_as_long_as_the_context_can_be_scored(client):
    answer = echo(client, prompt=[1] * CONTEXT, max_tokens=0, logprobs=0)
    assert len(answer.choices[0].logprobs.token_logprobs) == CONTEXT
    assert answer.choices[0].logprobs.top_logprobs is None


def test_several_prompts_and_choices_are_each_echoed(client):
    options = {"prompt": ["To be", "that is"], "n": 2, "logprobs": 0, "max_tokens": 3, "temperature": 1, "seed": 3}
    answer = echo(client, **options)
    plain = complete(client, **options)
    pairs = zip(answer.choices, plain.choices, ["To be", "To be", "that is", "that is"], strict=True)
    for index, (choice, alone, prompt) in enumerate(pairs):
        assert (choice.index, choice.text) == (index, prompt + alone.text)
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.token_logprobs[-3:] == alone.logprobs.token_logprobs
    assert answer.choices[0].logprobs.token_logprobs[1:-3] == answer.choices[1].logprobs.token_logprobs[1:-3]


def test_prompt_of_one_token_has_no_log_probability(client):
    columns = echo(client, prompt=[5], max_tokens=0, logprobs=1).choices[0].logprobs
    assert (columns.token_logprobs, columns.top_logprobs, columns.text_offset) == ([None], [None], [0])


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_that_split_a_character_are_named_by_their_bytes(client, tokenizer, stream):
    ids = tokenizer.encode(SPLIT)
    answer = echo(client, prompt=SPLIT, max_tokens=0, logprobs=5, stream=stream)
    columns = streamed(answer)[1] if stream else answer.choices[0].logprobs.model_dump()
    assert [token for token in columns["tokens"] if token.startswith("bytes:")] == [
        "bytes:\\xf0",
        "bytes:\\x9f",
        "bytes:\\x99",
        "bytes:\\x82",
    ]
    at = columns["tokens"].index("bytes:\\xf0")
    assert columns["text_offset"][at : at + 5] == [SPLIT.index("🙂")] * 4 + [SPLIT.index("🙂") + 1]
    assert len(columns["text_offset"]) == len(ids)
    # Every candidate keeps a name of its own: the likeliest ones and the prompt's token.
    assert all(len(top) in (5, 6) for top in columns["top_logprobs"][1:])


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_stay_in_a_text_that_a_stop_string_cuts(client, stream):
    whole = complete(client, max_tokens=12, logprobs=0).choices[0]
    stop = whole.text[4:9]
    options = {"max_tokens": 12, "logprobs": 0, "stop": stop, "stream": stream}
    answer = complete(client, **options)
    text, columns, finish_reason = (
        streamed(answer)
        if stream
        else (answer.choices[0].text, answer.choices[0].logprobs.model_dump(), answer.choices[0].finish_reason)
    )
    assert (text, finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    assert max(columns["text_offset"]) <= len(text)
    number = len(columns["tokens"])
    assert columns["tokens"] == whole.logprobs.tokens[:number]
    assert columns["text_offset"] == [min(offset, len(text)) for offset in whole.logprobs.text_offset[:number]]


def test_best_of_returns_the_likeliest_answers(client, local):
    answer = complete(client, n=2, logprobs=0, max_tokens=5, extra_body={"best_of": 6, "ignore_eos": True})
    every = local.generate("To be", SamplingParams(n=6, seed=1, max_tokens=5, logprobs=0, ignore_eos=True)).choices
    means = {one.text: math.fsum(entry.logprob for entry in one.logprobs) / 5 for one in every}
    assert [choice.text for choice in answer.choices] == sorted(means, key=means.get, reverse=True)[:2]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage.completion_tokens == 30  # all six count
    unranked = complete(client, max_tokens=5, best_of=6)
    assert (unranked.choices[0].text, unranked.choices[0].logprobs) == (answer.choices[0].text, None)


def test_prompt_logprobs_can_start_late(client, tokenizer):
    ids = tokenizer.encode("To be, or not to be, that is the question. " * 4)
    number = len(ids)
    whole, late = (
        complete(client, prompt=ids, max_tokens=0, extra_body={"prompt_logprobs": 0, "prompt_logprobs_start": start})
        .choices[0]
        .model_extra["prompt_logprobs"]
        for start in (0, number - 3)
    )
    assert late[: number - 3] == [None] * (number - 3)
    for scored, expected in zip(late[-3:], whole[-3:], strict=True):
        assert scored.keys() == expected.keys()
        assert [value["logprob"] for value in scored.values()] == pytest.approx(
            [value["logprob"] for value in expected.values()], abs=1e-4
        )


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": True, "logprobs": 1, "extra_body": {"prompt_logprobs_start": 2}}, "prompt_logprobs_start"),
    ],
)
def test_contradictions_are_refused_by_name(client, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, **options)
    assert caught.value.param == param


def test_a_chat_generates_at_least_one_token(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=0)
    assert caught.value.param == "max_tokens"
