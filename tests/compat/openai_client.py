"""What a user of OpenAI's Python client does, against a server of this package; imports nothing but `openai`.

Usage: openai_client.py BASE_URL MODEL
"""

import sys

import openai

MESSAGES = [{"role": "user", "content": "What news?"}]


def check_chat(client: openai.OpenAI, model: str) -> None:
    options = {"model": model, "messages": MESSAGES, "max_tokens": 12, "seed": 1, "extra_body": {"ignore_eos": True}}
    whole = client.chat.completions.create(**options, n=2, logprobs=True, top_logprobs=2)
    assert [choice.index for choice in whole.choices] == [0, 1]
    text = whole.choices[0].message.content
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].logprobs.content[0].top_logprobs[0].logprob <= 0
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == text
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (chunks[-1].choices, chunks[-1].usage.prompt_tokens) == ([], whole.usage.prompt_tokens)
    check_stream_helper(client, options, text)


def check_stream_helper(client: openai.OpenAI, options: dict, text: str) -> None:
    """The helper stood under `beta` in the first versions."""
    completions = client.chat.completions
    stream = completions.stream if hasattr(completions, "stream") else client.beta.chat.completions.stream
    stopped = options | {"stop": text[6:8]}  # the helper takes `finish_reason: length` for an error
    with stream(**stopped) as events:
        parts = [event.delta for event in events if event.type == "content.delta"]
        final = events.get_final_completion()
    assert "".join(parts) == final.choices[0].message.content == text[: text.index(text[6:8])]
    assert final.choices[0].finish_reason == "stop"


def check_completions(client: openai.OpenAI, model: str) -> None:
    options = {"model": model, "max_tokens": 8, "seed": 1, "extra_body": {"ignore_eos": True}}
    whole = client.completions.create(**options, prompt=["To be", "or not"], n=2, logprobs=1)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert len(whole.choices[0].logprobs.tokens) == 8
    assert whole.usage.completion_tokens == 4 * 8
    chunks = list(client.completions.create(**options, prompt="To be", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    stream = client.completions.create(**options | {"max_tokens": 1000}, prompt="To be", stream=True)
    next(iter(stream))
    stream.close()


def check_responses(client: openai.OpenAI, model: str) -> None:
    """The first versions have no responses."""
    if not hasattr(client, "responses"):
        return
    options = {"model": model, "max_output_tokens": 8, "extra_body": {"seed": 1, "ignore_eos": True}}
    whole = client.responses.create(**options, input="To be")
    events = list(client.responses.create(**options, input="To be", stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text == events[-1].response.output_text
    after = client.responses.create(**options, input="Or?", previous_response_id=whole.id)
    assert client.responses.retrieve(after.id).output_text == after.output_text
    assert [item.content[0].text for item in client.responses.input_items.list(after.id)] == ["Or?"]
    client.responses.delete(after.id)
    print(f"openai {openai.__version__}: responses work")


def check_errors(client: openai.OpenAI, model: str) -> None:
    for options, kind, param in (
        ({"model": "other"}, openai.NotFoundError, "model"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "prompt"),
    ):
        for stream in (False, True):
            error = refusal(client, {"model": model, "prompt": "To be", "stream": stream} | options)
            assert isinstance(error, kind), error
            assert (error.param, error.type) == (param, "invalid_request_error"), error


def refusal(client: openai.OpenAI, options: dict) -> openai.APIStatusError | None:
    try:
        client.completions.create(**options)
    except openai.APIStatusError as error:
        return error
    return None


def main() -> None:
    base_url, model = sys.argv[1:]
    client = openai.OpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=60)
    assert [entry.id for entry in client.models.list()] == [model]
    check_chat(client, model)
    check_completions(client, model)
    check_responses(client, model)
    check_errors(client, model)
    print(f"openai {openai.__version__}: chat, streams, stream helper, completions, log-probabilities and errors work")


main()
