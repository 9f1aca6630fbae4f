"""What a user of Anthropic's Python client does, against a server of this package; imports nothing but `anthropic`.

Usage: anthropic_client.py BASE_URL MODEL
"""

import asyncio
import sys

import anthropic

MESSAGES = [{"role": "user", "content": "What news?"}]


def options_of(model: str) -> dict:
    return {"model": model, "messages": MESSAGES, "max_tokens": 12, "extra_body": {"seed": 1, "ignore_eos": True}}


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def check_message(client: anthropic.Anthropic, model: str) -> str:
    message = client.messages.create(**options_of(model), system=[{"type": "text", "text": "Be brief."}])
    assert (message.type, message.role, message.model) == ("message", "assistant", model)
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 12)
    assert message._request_id is not None
    counted = client.messages.count_tokens(model=model, messages=MESSAGES, system="Be brief.")
    assert counted.input_tokens == message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    plain = text_of(client.messages.create(**options_of(model)))
    stop = plain[5:7]
    stopped = client.messages.create(**options_of(model), stop_sequences=[stop])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)
    assert text_of(stopped) == plain[: plain.index(stop)]
    return plain


def check_streams(client: anthropic.Anthropic, model: str, text: str) -> None:
    events = list(client.messages.create(**options_of(model), stream=True))
    assert [event.type for event in events[:2]] == ["message_start", "content_block_start"]
    assert [event.type for event in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    assert "".join(event.delta.text for event in events if event.type == "content_block_delta") == text
    with client.messages.stream(**options_of(model)) as stream:
        assert "".join(stream.text_stream) == text
        final = stream.get_final_message()
    assert (text_of(final), final.stop_reason, final.usage.output_tokens) == (text, "max_tokens", 12)


async def check_async(base_url: str, model: str, text: str) -> None:
    async with anthropic.AsyncAnthropic(base_url=base_url, api_key="any", max_retries=0) as client:
        whole, _ = await asyncio.gather(client.messages.create(**options_of(model)), check_async_stream(client, model))
        assert text_of(whole) == text


async def check_async_stream(client: anthropic.AsyncAnthropic, model: str) -> None:
    async with client.messages.stream(**options_of(model)) as stream:
        parts = [part async for part in stream.text_stream]
        assert "".join(parts) == text_of(await stream.get_final_message())


def check_errors(client: anthropic.Anthropic, model: str) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    for changed, kind, named in (
        ({"model": "other"}, anthropic.NotFoundError, "other"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens"),
        ({"messages": [{"role": "user", "content": [image]}]}, anthropic.BadRequestError, "image"),
    ):
        for stream in (False, True):
            error = refusal(client, options_of(model) | changed | {"stream": stream})
            assert isinstance(error, kind), error
            assert named in error.body["error"]["message"], error
            assert error.request_id == error.body["request_id"]


def refusal(client: anthropic.Anthropic, options: dict) -> anthropic.APIStatusError | None:
    try:
        client.messages.create(**options)
    except anthropic.APIStatusError as error:
        return error
    return None


def main() -> None:
    base_url, model = sys.argv[1].removesuffix("/v1"), sys.argv[2]
    client = anthropic.Anthropic(base_url=base_url, api_key="any", max_retries=0, timeout=60)
    text = check_message(client, model)
    check_streams(client, model, text)
    asyncio.run(check_async(base_url, model, text))
    check_errors(client, model)
    print(f"anthropic {anthropic.__version__}: messages, streams, stream helper, async, counts and errors work")


main()
