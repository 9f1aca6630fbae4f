"""Splits the deltas of a stream into parts."""

from collections.abc import Sequence

import msgspec

from llm.inference.outputs import ChoiceDelta, Delta
from llm.inference.parts import PartsParser
from llm.inference.prompt import Prompt


class DeltaSplitter:
    """Adds to each delta the parts that it completes, for answers whose prompts ask for parts.

    Args:
        prompts: The prompts of the stream, whose answers are numbered across prompts.
    """

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        setups = [prompt.answer for prompt in prompts for _ in range(prompt.params.n)]
        self._parsers = [None if setup is None else PartsParser(setup) for setup in setups]

    @staticmethod
    def is_needed(prompts: Sequence[Prompt]) -> bool:
        """Returns whether the answer to any prompt has parts."""
        return any(prompt.answer is not None for prompt in prompts)

    def split(self, numbered: ChoiceDelta) -> ChoiceDelta:
        """Returns the delta with its parts, and with the number of its tokens that belong to the reasoning."""
        choice, delta = numbered
        parser = self._parsers[choice]
        return numbered if parser is None else (choice, _split(delta, parser))


def _split(delta: Delta, parser: PartsParser) -> Delta:
    was_reasoning = parser.is_reasoning
    parts = parser.push(delta.text)
    reasons = was_reasoning or parser.is_reasoning
    if delta.finish_reason is not None:
        parts += parser.finish()
    num_tokens = len(delta.token_ids) if reasons else 0
    return msgspec.structs.replace(delta, parts=tuple(parts), reasoning_tokens=num_tokens)
