"""Speculative decoding: a draft model proposes tokens that the main model then verifies in one pass."""
