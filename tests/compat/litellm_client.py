"""What a user of LiteLLM does with its provider `openai/`, against a server of this package.

Usage: litellm_client.py BASE_URL MODEL
"""

import asyncio
import json
import os
import sys

# Otherwise the import fetches a list of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

MESSAGES = [{"role": "user", "content": "What news?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]


def check_chat(options: dict) -> None:
    whole = litellm.completion(**options, messages=MESSAGES)
    assert whole.choices[0].message.content == "The tide is high."
    assert whole.usage.completion_tokens > 0
    chunks = list(litellm.completion(**options, messages=MESSAGES, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "The tide is high."
    assert asyncio.run(litellm.acompletion(**options, messages=MESSAGES)).choices[0].finish_reason == "stop"


def check_tools(options: dict) -> None:
    answer = litellm.completion(**options, messages=MESSAGES, tools=TOOLS).choices[0]
    (call,) = answer.message.tool_calls
    assert (answer.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments) == {"city": "Verona"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "fair"}
    after = litellm.completion(**options, messages=[*MESSAGES, answer.message, result], tools=TOOLS)
    assert after.choices[0].message.content == "It is fair in Verona."
    chunks = list(litellm.completion(**options, messages=MESSAGES, tools=TOOLS, stream=True))
    (streamed,) = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    assert (streamed.function.name, streamed.function.arguments) == ("weather", call.function.arguments)


def check_the_rest(options: dict) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    asked = [{"role": "user", "content": "A place, as JSON"}]
    answer = litellm.completion(**options, messages=asked, response_format=form)
    assert json.loads(answer.choices[0].message.content) == {"city": "Verona", "days": 2}
    vectors = litellm.embedding(**options, input=["To be", "or not"]).data
    assert [len(entry["embedding"]) > 0 for entry in vectors] == [True, True]
    assert litellm.responses(**options, input="What news?").output[0].content[0].text == "The tide is high."
    try:
        litellm.completion(**options | {"model": "openai/other"}, messages=MESSAGES)
    except litellm.NotFoundError:
        return
    raise SystemExit("a name that is no model has to be an error")


def main() -> None:
    base_url, model = sys.argv[1:]
    options = {"model": f"openai/{model}", "api_base": base_url, "api_key": "any", "max_retries": 0, "timeout": 60}
    check_chat(options)
    check_tools(options)
    check_the_rest(options)
    print("completion, stream, async, tools, structured output, embeddings, responses, errors")


main()
