"""Prompts in the form that the engine accepts."""

import msgspec

from llm._rust import Grammar
from llm.inference.parts import AnswerSetup
from llm.settings.sampling import SamplingParams


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One encoded prompt, which the engine answers `params.n` times.

    Attributes:
        token_ids: Token ids of the prompt, at least one.
        params: Sampling parameters of each answer.
        priority: Lower values run first; equal values run in order of arrival.
        answer: How to split the answers into parts; None leaves them whole.
        kept_special_ids: Special tokens whose text is kept even with `skip_special_tokens`.
        grammar: The compiled grammar of `params.structured_outputs`; see `Engine.compile_grammar`.
        adapter: Name of the adapter that computes the answers; None for the model itself.
    """

    token_ids: list[int]
    params: SamplingParams
    priority: int = 0
    answer: AnswerSetup | None = None
    kept_special_ids: tuple[int, ...] = ()
    grammar: Grammar | None = None
    adapter: str | None = None
