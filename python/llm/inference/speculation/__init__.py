"""Speculation: a draft model guesses tokens that the model then verifies in one pass."""
