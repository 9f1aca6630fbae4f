import msgspec
from hypothesis import given
from hypothesis import strategies as st

from llm import SamplingParams
from llm.inference import Collector, Delta, Prompt, TokenLogprob, Usage
from llm.serving import sse
from llm.serving.answers.chat import ChatAnswer
from llm.serving.answers.text import TextAnswer
from llm.serving.protocol.chat import ChatCompletionRequest, ChatMessage
from llm.serving.protocol.completions import CompletionRequest
from llm.tokenization import SimpleCharacterTokenizer

TOKENIZER = SimpleCharacterTokenizer.train("abc é")
USAGE = Usage.of(2, 3)


def chat(**fields):
    request = ChatCompletionRequest(model="m", messages=[ChatMessage(role="user", content="x")], **fields)
    return ChatAnswer(request, TOKENIZER)


def payload(event):
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    return msgspec.json.decode(event[len(b"data: ") :])


@given(st.text())
def test_event_carries_any_text_on_one_line(text):
    answer = TextAnswer(CompletionRequest(model="m", prompt="x"), TOKENIZER)
    assert payload(sse.event(answer.chunk(0, text)))["choices"] == [
        {"index": 0, "text": text, "finish_reason": None, "logprobs": None}
    ]


def test_done_is_openais_last_event():
    assert sse.DONE == b"data: [DONE]\n\n"


def test_chat_chunks_have_openais_shape():
    answer = chat()
    opening = payload(sse.event(answer.opening(0)))
    assert opening["object"] == "chat.completion.chunk"
    assert opening["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None, "logprobs": None}
    ]
    assert "usage" not in opening
    assert payload(sse.event(answer.chunk(0, "hi")))["choices"][0]["delta"] == {"content": "hi"}
    closing = payload(sse.event(answer.chunk(0, "", "length")))
    assert closing["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length", "logprobs": None}]
    assert opening["id"] == closing["id"]


@given(st.text(min_size=1), st.sampled_from(["plain", "\0text\0", 'a"b']))
def test_events_of_deltas_equal_their_chunks_one_by_one(text, model):
    for answer in (
        ChatAnswer(ChatCompletionRequest(model=model, messages=[ChatMessage(role="user", content="x")]), TOKENIZER),
        TextAnswer(CompletionRequest(model=model, prompt="x"), TOKENIZER),
    ):
        deltas = [(1, Delta(text, (0,))), (0, Delta("", (1,))), (1, Delta(text, (2,), "stop"))]
        opening = [[chunk] if (chunk := answer.opening(index)) is not None else [] for index in (0, 1)]
        chunks = [
            *opening[1],
            answer.chunk(1, text),
            *opening[0],
            answer.chunk(1, text),
            answer.chunk(1, "", "stop"),
        ]
        assert answer.events(deltas) == b"".join(map(sse.event, chunks))


def test_usage_is_null_until_the_last_chunk_once_it_is_asked_for():
    assert "usage" not in payload(sse.event(chat(stream=True).chunk(0, "x")))
    request = msgspec.convert(
        {"model": "m", "prompt": "x", "stream": True, "stream_options": {"include_usage": True}}, CompletionRequest
    )
    answer = TextAnswer(request, TOKENIZER)
    assert payload(sse.event(answer.chunk(0, "x")))["usage"] is None
    last = payload(sse.event(answer.usage_chunk(USAGE)))
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 3,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_prompt_logprobs_have_the_prompts_token_and_the_likeliest_at_each_position():
    a, b, c = TOKENIZER.encode("abc")
    prompt = Prompt(token_ids=[a, b, c], params=SamplingParams())
    collector = Collector([prompt])
    scored = (TokenLogprob(b, -0.5, ((b, -0.5),), 1), TokenLogprob(c, -3.0, ((a, -0.1),), 3))
    collector.add([(0, Delta("x", (a,), None, None, scored)), (0, Delta("y", (b,), "stop"))])
    expected = [
        None,
        {str(b): {"logprob": -0.5, "rank": 1, "decoded_token": "b"}},
        {
            str(a): {"logprob": -0.1, "rank": 1, "decoded_token": "a"},
            str(c): {"logprob": -3.0, "rank": 3, "decoded_token": "c"},
        },
    ]
    request = CompletionRequest(model="m", prompt="abc", prompt_logprobs=1)
    whole = msgspec.to_builtins(TextAnswer(request, TOKENIZER).whole(collector))
    assert whole["choices"][0]["prompt_logprobs"] == expected
    assert msgspec.to_builtins(chat(prompt_logprobs=1).whole(collector))["prompt_logprobs"] == expected
    silent = Collector([prompt])
    silent.add([(0, Delta("x", (a,), "stop"))])
    assert "prompt_logprobs" not in msgspec.to_builtins(chat().whole(silent))
