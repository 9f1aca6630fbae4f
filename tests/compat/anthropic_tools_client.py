"""What a user of Anthropic's Python client does with tools; imports nothing but `anthropic`.

Usage: anthropic_tools_client.py BASE_URL MODEL
"""

import asyncio
import sys

import anthropic

QUESTION = {"role": "user", "content": "How is Verona?"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
OPTIONS = {"max_tokens": 100, "tools": [{"name": "weather", "description": "Tells.", "input_schema": SCHEMA}]}


def check_message(message: anthropic.types.Message) -> str:
    """Returns the id of the call."""
    (block,) = message.content
    assert (message.stop_reason, block.type) == ("tool_use", "tool_use")
    assert (block.name, block.input) == ("weather", {"city": "Verona"})
    return block.id


def check_tools(client: anthropic.Anthropic, model: str) -> None:
    answer = client.messages.create(model=model, messages=[QUESTION], **OPTIONS)
    result = {"type": "tool_result", "tool_use_id": check_message(answer), "content": "fair"}
    turns = [QUESTION, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    after = client.messages.create(model=model, messages=turns, **OPTIONS)
    assert (after.stop_reason, after.content[0].text) == ("end_turn", "It is fair in Verona.")
    forced = {"type": "tool", "name": "weather"}
    check_message(client.messages.create(model=model, messages=[QUESTION], tool_choice=forced, **OPTIONS))
    with client.messages.stream(model=model, messages=[QUESTION], **OPTIONS) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        check_message(stream.get_final_message())
    assert "".join(parts) == '{"city": "Verona"}'


async def check_async(base_url: str, model: str) -> None:
    async with (
        anthropic.AsyncAnthropic(base_url=base_url, api_key="any", max_retries=0) as client,
        client.messages.stream(model=model, messages=[QUESTION], **OPTIONS) as stream,
    ):
        check_message(await stream.get_final_message())


def main() -> None:
    base_url, model = sys.argv[1].removesuffix("/v1"), sys.argv[2]
    client = anthropic.Anthropic(base_url=base_url, api_key="any", max_retries=0, timeout=60)
    check_tools(client, model)
    asyncio.run(check_async(base_url, model))
    print("tools, results, forced tool, stream helper, async")


main()
