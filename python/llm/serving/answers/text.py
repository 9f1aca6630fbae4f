"""Responses of `/v1/completions`."""

from collections.abc import Sequence

import msgspec

from llm.inference import Collector, Delta, FinishReason, Prompt, TokenLogprob, Usage
from llm.serving.answers.base import Answer, all_choices
from llm.serving.logprobs import completion_logprobs
from llm.serving.protocol.common import GenerationRequest, UsageField
from llm.serving.protocol.completions import Completion, CompletionChoice
from llm.serving.protocol.logprobs import CompletionLogprobs
from llm.tokenization import BaseTokenizer


class TextAnswer(Answer):
    """Builds responses of `/v1/completions`, which uses one type for chunks and whole responses."""

    id_prefix = "cmpl"

    def __init__(self, request: GenerationRequest, tokenizer: BaseTokenizer, prompts: Sequence[Prompt] = ()) -> None:
        super().__init__(request, tokenizer, prompts)
        self._offsets: dict[int, int] = {}  # where each choice's next token begins

    def opening(self, index: int) -> None:  # noqa: ARG002 - plain text has no role to announce
        """Returns None: plain text has no opening chunk."""
        return

    def chunk(self, index: int, text: str, finish_reason: FinishReason | None = None) -> msgspec.Struct:
        """Returns a chunk that adds text."""
        choice = CompletionChoice(index=index, text=text, finish_reason=finish_reason)
        return self._completion([choice], self._no_usage)

    def token_chunk(self, index: int, delta: Delta) -> msgspec.Struct:
        """Returns a chunk that adds text with log-probabilities and ids of its tokens."""
        is_first = index not in self._offsets
        columns = self._logprobs(delta.logprobs or (), self._offsets.setdefault(index, 0))
        if columns is not None:
            self._offsets[index] = columns.text_offset[-1] + len(columns.tokens[-1])
        choice = CompletionChoice(
            index=index,
            text=delta.text,
            finish_reason=None,
            logprobs=columns,
            token_ids=self._ids(delta),
            prompt_token_ids=self._prompt_ids(index) if is_first else msgspec.UNSET,
        )
        return self._completion([choice], self._no_usage)

    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """Returns the chunk that holds the usage and no choice."""
        return self._completion([], usage)

    def whole(self, collector: Collector) -> msgspec.Struct:
        """Returns the response with one text per choice."""
        choices = [
            CompletionChoice(
                index=index,
                text=choice.text,
                finish_reason=choice.finish_reason,
                logprobs=self._logprobs(choice.logprobs or (), 0),
                prompt_logprobs=self._prompt_logprobs(choice),
                token_ids=self._ids(choice),
                prompt_token_ids=self._prompt_ids(index),
            )
            for index, choice in enumerate(all_choices(collector.outputs()))
        ]
        return self._completion(choices, collector.usage)

    def _logprobs(self, entries: Sequence[TokenLogprob], start: int) -> CompletionLogprobs | None:
        if not entries:
            return None
        return completion_logprobs(entries, self._tokenizer, self._num_logprobs or 0, start)

    def _completion(self, choices: list[CompletionChoice], usage: UsageField) -> Completion:
        return Completion(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)
