"""Rows to fine-tune on: conversations, prompts with completions, and preferences."""

from llm.data.rows.encode import EncodedRow, PreferenceEncoder, RowEncoder
from llm.data.rows.formats import ChatRow, chat_row, format_of
from llm.data.rows.preferences import preference_format, preference_rows

__all__ = [
    "ChatRow",
    "EncodedRow",
    "PreferenceEncoder",
    "RowEncoder",
    "chat_row",
    "format_of",
    "preference_format",
    "preference_rows",
]
