"""Descriptions, and ranges if they are the same, of fields that several request types have."""

from msgspec import Meta

MODEL = Meta(min_length=1, description="Name of the model.")
STREAM = Meta(description="Send the answer as server-sent events while it is generated.")
NEW_TOKENS = Meta(ge=1, description="Largest number of new tokens; null: up to the context's end.")
TEMPLATE_VARIABLES = Meta(description="The template's variables, by name.")
EFFORT = Meta(description="The template's variable for the effort of reasoning; `none` turns thinking off.")
VERBOSITY = Meta(description="The template's variable for the length of the answer.")
SPECIAL_TOKENS = Meta(description="Add special tokens such as BOS to a text; a chat template writes its own.")
TEXTS_OR_IDS = Meta(description="A text, a list of token ids, or a list of either.")
FORM = Meta(description="Form of the answer.")

TOOLS = Meta(description="Functions that the model may call.")
TOOL_CHOICE = Meta(description="Whether the model may, must or must not call functions, or which one it must call.")
PARALLEL_CALLS = Meta(description="Whether to return more than the first call of an answer; null: yes.")
TOOL_NAME = Meta(description="The name that calls use.")
TOOL_DESCRIPTION = Meta(description="What the function does, for the model to read.")
TOOL_SCHEMA = Meta(description="JSON Schema of the arguments; null: there are none.")
TOOL_STRICT = Meta(description="Hold the arguments of every call to the schema.")

UNUSED = Meta(description="Accepted; changes nothing.")
