"""What the engine is asked."""

import msgspec

from llm.settings.sampling import SamplingParams


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt, ready for the engine, which answers it `params.n` times.

    Attributes:
        token_ids: At least one token.
        params: How to sample each answer.
        priority: Lower values run first; equal values run in order of arrival.
    """

    token_ids: list[int]
    params: SamplingParams
    priority: int = 0
