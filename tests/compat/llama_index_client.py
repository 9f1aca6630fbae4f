"""What a user of LlamaIndex does with `OpenAILike`, against a server of this package.

Usage: llama_index_client.py BASE_URL MODEL
"""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Place(BaseModel):
    """A place to visit."""

    city: str
    days: int


def weather(city: str) -> str:
    """Tells the weather."""
    return f"fair in {city}"


def check_chat(llm: OpenAILike) -> None:
    messages = [ChatMessage(role="user", content="What news?")]
    assert llm.chat(messages).message.content == "The tide is high."
    deltas = [part.delta for part in llm.stream_chat(messages)]
    assert "".join(delta or "" for delta in deltas) == "The tide is high."
    assert llm.complete("What news?").text == "The tide is high."


def check_tools(llm: OpenAILike) -> None:
    tool = FunctionTool.from_defaults(weather)
    done = llm.predict_and_call([tool], user_msg="How is Verona?")
    assert done.response == "fair in Verona", done.response
    place = llm.as_structured_llm(Place).complete("A place").raw
    assert place == Place(city="Verona", days=2)


def main() -> None:
    base_url, model = sys.argv[1:]
    options = {"api_base": base_url, "api_key": "any", "max_retries": 0}
    llm = OpenAILike(
        model=model, **options, is_chat_model=True, is_function_calling_model=True, context_window=768, timeout=60
    )
    check_chat(llm)
    check_tools(llm)
    embedding = OpenAILikeEmbedding(model_name=model, **options)
    first, second = embedding.get_text_embedding_batch(["To be", "or not"])
    assert len(first) == len(second) > 0
    assert embedding.get_text_embedding("To be") == first
    print("chat, stream, complete, tools, structured output, embeddings")


main()
