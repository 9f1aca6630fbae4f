"""Reasoning and calls of functions in answers: what every API that shows them needs."""

import secrets
import string
import uuid

from llm.inference import GenerationOutput, Part
from llm.serving.protocol.chat import ChatDelta
from llm.serving.protocol.tools import FunctionCall, FunctionCallDelta, MessageToolCall, ToolCallDelta

# The templates of Mistral's models accept only ids of this form.
MISTRAL_ID_CHARS = 9
_ID_LETTERS = string.ascii_letters + string.digits


def new_call_id(format: str | None) -> str:
    """Returns a new id for a call, in the form that templates of the format accept."""
    if format == "mistral":
        return "".join(secrets.choice(_ID_LETTERS) for _ in range(MISTRAL_ID_CHARS))
    return f"call_{uuid.uuid4().hex}"


def message_tool_calls(output: GenerationOutput, format: str | None) -> list[MessageToolCall]:
    """Returns the calls of a whole answer, each with a new id."""
    return [
        MessageToolCall(id=new_call_id(format), function=FunctionCall(name=call.name, arguments=call.arguments))
        for call in output.tool_calls
    ]


def chat_delta(part: Part, format: str | None) -> ChatDelta:
    """Returns a part of an answer as the delta of a chunk; the first delta of a call has its new id."""
    match part:
        case Part(kind="text"):
            return ChatDelta(content=part.text)
        case Part(kind="reasoning"):
            return ChatDelta(reasoning=part.text, reasoning_content=part.text)
        case Part(kind="call", call=int(index)):
            function = FunctionCallDelta(name=part.text, arguments="")
            call = ToolCallDelta(index=index, id=new_call_id(format), type="function", function=function)
            return ChatDelta(tool_calls=[call])
        case Part(call=index):
            call = ToolCallDelta(index=index or 0, function=FunctionCallDelta(arguments=part.text))
            return ChatDelta(tool_calls=[call])
