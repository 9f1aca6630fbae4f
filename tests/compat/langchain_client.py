"""What a user of LangChain does with `langchain-openai`, against a server of this package.

Usage: langchain_client.py BASE_URL MODEL
"""

import asyncio
import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Place(BaseModel):
    """A place to visit."""

    city: str
    days: int


def weather(city: str) -> str:
    """Tells the weather."""
    return f"fair in {city}"


def check_chat(chat: ChatOpenAI) -> None:
    whole = chat.invoke("What news?")
    assert whole.content == "The tide is high."
    assert whole.usage_metadata["total_tokens"] > whole.usage_metadata["output_tokens"] > 0
    chunks = list(chat.stream("What news?"))
    assert "".join(chunk.content for chunk in chunks) == whole.content
    assert len(chunks) > 2
    assert asyncio.run(chat.ainvoke("What news?")).content == whole.content


def check_structured(chat: ChatOpenAI) -> None:
    for method in ("json_schema", "function_calling", "json_mode"):
        place = chat.with_structured_output(Place, method=method).invoke("A place, as JSON")
        assert place == Place(city="Verona", days=2), method


def check_tools(chat: ChatOpenAI) -> None:
    bound = chat.bind_tools([weather])
    question = HumanMessage("How is Verona?")
    answer = bound.invoke([question])
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Verona"})
    result = ToolMessage(weather(**call["args"]), tool_call_id=call["id"])
    assert bound.invoke([question, answer, result]).content == "It is fair in Verona."
    chunks = list(bound.stream([question]))
    whole = sum(chunks[1:], chunks[0])
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("weather", {"city": "Verona"})]
    (forced,) = chat.bind_tools([weather], tool_choice="weather").invoke([question]).tool_calls
    assert forced["args"] == {"city": "Verona"}


def check_embeddings(base_url: str, model: str) -> None:
    # By default, the client sends ids of OpenAI's vocabulary.
    embeddings = OpenAIEmbeddings(base_url=base_url, api_key="any", model=model, check_embedding_ctx_length=False)
    first, second = embeddings.embed_documents(["To be", "or not"])
    assert len(first) == len(second) > 0
    assert embeddings.embed_query("To be") == first


def main() -> None:
    base_url, model = sys.argv[1:]
    options = {"base_url": base_url, "api_key": "any", "model": model, "max_retries": 0, "timeout": 60}
    chat = ChatOpenAI(**options)
    check_chat(chat)
    check_structured(chat)
    check_tools(chat)
    check_embeddings(base_url, model)
    responses = ChatOpenAI(**options, use_responses_api=True)
    assert responses.invoke("What news?").text == "The tide is high."
    print("invoke, stream, structured output in three ways, tools, embeddings, responses")


main()
