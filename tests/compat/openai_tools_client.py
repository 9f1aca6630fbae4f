"""What a user of OpenAI's Python client does with tools, types and embeddings; imports nothing but `openai`.

Usage: openai_tools_client.py BASE_URL MODEL
"""

import asyncio
import json
import sys

import openai
from pydantic import BaseModel

QUESTION = {"role": "user", "content": "How is Verona?"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS, "strict": True}}]


class Place(BaseModel):
    """A place to visit."""

    city: str
    days: int


VERONA = Place(city="Verona", days=2)


def completions_of(client: openai.OpenAI | openai.AsyncOpenAI):
    """The helpers stood under `beta` in the first versions."""
    completions = client.chat.completions
    return completions if hasattr(completions, "parse") else client.beta.chat.completions


def check_tools(client: openai.OpenAI, model: str) -> None:
    request = {"model": model, "tools": TOOLS}
    answer = client.chat.completions.create(**request, messages=[QUESTION]).choices[0]
    (call,) = answer.message.tool_calls
    assert (answer.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments) == {"city": "Verona"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "fair"}
    after = client.chat.completions.create(**request, messages=[QUESTION, answer.message, result])
    assert after.choices[0].message.content == "It is fair in Verona."
    with completions_of(client).stream(**request, messages=[QUESTION]) as events:
        kinds = [event.type for event in events]
        (streamed,) = events.get_final_completion().choices[0].message.tool_calls
    assert "tool_calls.function.arguments.delta" in kinds
    assert streamed.function.parsed_arguments == {"city": "Verona"}


def check_types(client: openai.OpenAI, model: str) -> None:
    asked = {"model": model, "messages": [{"role": "user", "content": "A place, as JSON"}], "response_format": Place}
    assert completions_of(client).parse(**asked).choices[0].message.parsed == VERONA
    with completions_of(client).stream(**asked) as events:
        assert events.get_final_completion().choices[0].message.parsed == VERONA
    tool = openai.pydantic_function_tool(Place)
    by_tool = {"model": model, "messages": [QUESTION], "tools": [tool], "tool_choice": "required"}
    (call,) = completions_of(client).parse(**by_tool).choices[0].message.tool_calls
    assert call.function.parsed_arguments == VERONA


def check_responses(client: openai.OpenAI, model: str) -> bool:
    """The first versions have no responses."""
    if not hasattr(client, "responses"):
        return False
    tool = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
    first = client.responses.create(model=model, input="How is Verona?", tools=[tool])
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Verona"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "fair"}
    after = client.responses.create(model=model, input=[result], tools=[tool], previous_response_id=first.id)
    assert after.output_text == "It is fair in Verona."
    asked = {"model": model, "input": "A place, as JSON", "text_format": Place}
    assert client.responses.parse(**asked).output_parsed == VERONA
    with client.responses.stream(**asked) as events:
        assert events.get_final_response().output_parsed == VERONA
    return True


def check_embeddings(client: openai.OpenAI, model: str) -> None:
    # The client asks for base64 unless told otherwise.
    packed, plain = (
        client.embeddings.create(model=model, input=["To be", "or not"], **options).data
        for options in ({}, {"encoding_format": "float"})
    )
    assert [entry.index for entry in packed] == [0, 1]
    assert all(abs(a - b) < 1e-6 for a, b in zip(packed[0].embedding, plain[0].embedding, strict=True))


async def check_async(base_url: str, model: str) -> None:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=60) as client:
        asked = {"model": model, "messages": [{"role": "user", "content": "What news?"}]}
        whole = await client.chat.completions.create(**asked)
        chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert text == whole.choices[0].message.content == "The tide is high."
        async with completions_of(client).stream(model=model, messages=[QUESTION], tools=TOOLS) as events:
            final = await events.get_final_completion()
        assert final.choices[0].message.tool_calls[0].function.parsed_arguments == {"city": "Verona"}
        assert len((await client.embeddings.create(model=model, input="To be")).data[0].embedding) > 0


def main() -> None:
    base_url, model = sys.argv[1:]
    client = openai.OpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=60)
    check_tools(client, model)
    check_types(client, model)
    has_responses = check_responses(client, model)
    check_embeddings(client, model)
    asyncio.run(check_async(base_url, model))
    print("tools, parse, streams, embeddings, async" + (", responses" if has_responses else ""))


main()
