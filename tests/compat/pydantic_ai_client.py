"""What a user of Pydantic AI does, against a server of this package.

Usage: pydantic_ai_client.py BASE_URL MODEL
"""

import asyncio
import sys

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Place(BaseModel):
    """A place to visit."""

    city: str
    days: int


VERONA = Place(city="Verona", days=2)


def check_tools(model: OpenAIChatModel) -> None:
    """The model calls the tool, reads its result, then calls the tool that carries the output."""
    asked = []
    agent = Agent(model, output_type=Place)

    @agent.tool_plain
    def weather(city: str) -> str:
        """Tells the weather."""
        asked.append(city)
        return "fair"

    assert agent.run_sync("How is Verona?").output == VERONA
    assert asked == ["Verona"]


async def check_stream(model: OpenAIChatModel) -> None:
    async with Agent(model).run_stream("What news?") as result:
        parts = [part async for part in result.stream_text(delta=True, debounce_by=None)]
    assert "".join(parts) == "The tide is high."
    assert len(parts) > 2


def main() -> None:
    base_url, name = sys.argv[1:]
    provider = OpenAIProvider(base_url=base_url, api_key="any")
    model = OpenAIChatModel(name, provider=provider)
    assert Agent(model, instructions="Be brief.").run_sync("What news?").output == "The tide is high."
    asyncio.run(check_stream(model))
    assert Agent(model, output_type=Place).run_sync("A place").output == VERONA
    check_tools(model)
    assert Agent(model, output_type=NativeOutput(Place)).run_sync("A place, as JSON").output == VERONA
    responses = OpenAIResponsesModel(name, provider=provider)
    assert Agent(responses).run_sync("What news?").output == "The tide is high."
    print("agent, stream, typed output, a tool and typed output, native output, responses")


main()
