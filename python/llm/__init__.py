"""llm-oxide: from a text corpus to a chat endpoint."""
