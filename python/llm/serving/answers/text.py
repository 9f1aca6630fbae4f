"""Responses of `/v1/completions`."""

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from llm.inference import ChoiceDelta, Collector, Delta, GenerationOutput, Prompt, TokenLogprob, Usage
from llm.serving.answers.base import Answer
from llm.serving.logprobs import TextOffsets, completion_logprobs, joined, prompt_offsets
from llm.serving.protocol.common import ChatFinishReason, TokenIdsField, UsageField
from llm.serving.protocol.completions import Completion, CompletionChoice, CompletionRequest
from llm.serving.protocol.logprobs import CompletionLogprobs
from llm.tokenization import BaseTokenizer


class TextAnswer(Answer):
    """Builds responses of `/v1/completions`, which uses one type for chunks and whole responses."""

    id_prefix = "cmpl"

    def __init__(self, request: CompletionRequest, tokenizer: BaseTokenizer, prompts: Sequence[Prompt] = ()) -> None:
        super().__init__(request, tokenizer, prompts)
        self._num_choices = request.num_choices
        self._given = request.prompt
        self._echo = bool(request.echo)
        self._skips_special = request.skip_special_tokens is not False
        self._scored: dict[int, Sequence[TokenLogprob]] = {}  # log-probabilities of each prompt, for the echo
        self._columns: dict[int, _Columns] = {}
        self._begun: set[int] = set()  # choices whose first tokens were sent

    def events(self, deltas: Iterable[ChoiceDelta]) -> bytes:
        """Returns deltas framed as events; with an echo, a choice's first event holds the prompt."""
        if self._num_logprobs is None:
            return super().events(deltas)
        released = []
        for index, delta in deltas:
            if delta.prompt_logprobs is not None:
                self._scored[index // self._num_choices] = delta.prompt_logprobs
            released.append((index, self._columns_of(index).release(delta)))
        return super().events(released)

    def opening(self, index: int) -> msgspec.Struct | None:
        """Returns the chunk with the prompt if the request asked for an echo, otherwise None."""
        if not self._echo:
            return None
        at = index // self._num_choices
        text = self._prompt_text(at)
        logprobs = self._echoed(at, text, self._scored.get(at, ()))
        return self._completion([CompletionChoice(index=index, text=text, finish_reason=None, logprobs=logprobs)])

    def chunk(self, index: int, text: str, finish_reason: ChatFinishReason | None = None) -> msgspec.Struct:
        """Returns a chunk that adds text."""
        return self._completion([CompletionChoice(index=index, text=text, finish_reason=finish_reason)])

    def token_chunk(self, index: int, delta: Delta) -> msgspec.Struct:
        """Returns a chunk that adds text with log-probabilities and ids of its tokens."""
        is_first = index not in self._begun
        self._begun.add(index)
        choice = CompletionChoice(
            index=index,
            text=delta.text,
            finish_reason=None,
            logprobs=self._released(self._columns_of(index), delta.logprobs or ()),
            token_ids=self._ids(delta),
            prompt_token_ids=self._prompt_ids(index) if is_first else msgspec.UNSET,
        )
        return self._completion([choice])

    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """Returns the chunk that holds the usage and no choice."""
        return self._completion([], usage)

    def whole(self, collector: Collector) -> msgspec.Struct:
        """Returns the response with one text per choice; of more answers than choices, the likeliest ones."""
        choices: list[CompletionChoice] = []
        for at, output in enumerate(collector.outputs()):
            scored = output.prompt_logprobs or ()
            for number, answer in enumerate(_best(output, self._num_choices)):
                choice = self._whole_choice(len(choices), answer, at, scored)
                if number == 0:
                    choice = msgspec.structs.replace(choice, prompt_logprobs=self._prompt_logprobs(output))
                choices.append(choice)
        return self._completion(choices, collector.usage)

    def _whole_choice(
        self, index: int, answer: GenerationOutput, at: int, scored: Sequence[TokenLogprob]
    ) -> CompletionChoice:
        """Returns a choice for prompt number `at`."""
        prompt_text = self._prompt_text(at) if self._echo else ""
        columns = _Columns(self._offsets(len(prompt_text)))
        columns.release(Delta(answer.text, answer.token_ids, answer.finish_reason, answer.logprobs))
        echoed = self._echoed(at, prompt_text, scored) if self._echo else None
        parts = (echoed, self._released(columns, answer.logprobs or ()))
        found = [part for part in parts if part is not None]
        return CompletionChoice(
            index=index,
            text=prompt_text + answer.text,
            finish_reason=answer.finish_reason,
            logprobs=joined(found) if found else None,
            token_ids=self._ids(answer),
            prompt_token_ids=self._prompt_ids(index),
        )

    def _released(self, columns: "_Columns", entries: Sequence[TokenLogprob]) -> CompletionLogprobs | None:
        """Returns the log-probabilities of tokens that `columns` released; None if the request asked for none."""
        if not entries or self._num_logprobs is None:
            return None
        offsets = columns.take_offsets(len(entries))
        return completion_logprobs(entries, self._tokenizer, self._num_logprobs, offsets)

    def _echoed(self, at: int, text: str, scored: Sequence[TokenLogprob]) -> CompletionLogprobs | None:
        """Returns the log-probabilities of a prompt's tokens, or None if the request asked for none."""
        if self._num_logprobs is None:
            return None
        token_ids = self._prompts[at].token_ids
        offsets = prompt_offsets(token_ids, text, self._offsets(0))
        return completion_logprobs(scored, self._tokenizer, self._num_logprobs, offsets, first_token_id=token_ids[0])

    def _prompt_ids(self, index: int) -> TokenIdsField:
        # Not by the number of answers: `best_of` generates more of them than there are choices.
        return tuple(self._prompts[index // self._num_choices].token_ids) if self._returns_ids else msgspec.UNSET

    def _prompt_text(self, at: int) -> str:
        """Returns a prompt's text: as it was sent, or decoded if token ids were sent."""
        given = self._given if isinstance(self._given, str) else self._given[at]
        if isinstance(given, str):
            return given
        return self._tokenizer.decode(self._prompts[at].token_ids, skip_special_tokens=self._skips_special)

    def _columns_of(self, index: int) -> "_Columns":
        columns = self._columns.get(index)
        if columns is None:
            start = len(self._prompt_text(index // self._num_choices)) if self._echo else 0
            columns = self._columns[index] = _Columns(self._offsets(start))
        return columns

    def _offsets(self, start: int) -> TextOffsets:
        return TextOffsets(self._tokenizer, skip_special_tokens=self._skips_special, start=start)

    def _completion(self, choices: list[CompletionChoice], usage: UsageField | None = None) -> Completion:
        found = self._no_usage if usage is None else usage
        return Completion(id=self._id, created=self._created, model=self._model, choices=choices, usage=found)


class _Columns:
    """Holds back the tokens of a choice until their text is certain, so that no offset lies past the text's end."""

    def __init__(self, offsets: TextOffsets) -> None:
        self._offsets = offsets
        self._end = offsets.end  # of the text that is certain
        self._held: deque[tuple[TokenLogprob, int]] = deque()
        self._released: deque[int] = deque()

    def release(self, delta: Delta) -> Delta:
        """Returns a delta with the tokens whose text has begun instead of those that were sampled."""
        self._held.extend((entry, self._offsets.push(entry.token_id)) for entry in delta.logprobs or ())
        self._end += len(delta.text)
        found = []
        while self._held and (self._held[0][1] < self._end or delta.finish_reason is not None):
            entry, offset = self._held.popleft()
            found.append(entry)
            self._released.append(min(offset, self._end))
        return msgspec.structs.replace(delta, logprobs=tuple(found) or None)

    def take_offsets(self, number: int) -> list[int]:
        """Returns the offsets of the next tokens that `release` returned."""
        return [self._released.popleft() for _ in range(number)]


def _best(output: GenerationOutput, number: int) -> Sequence[GenerationOutput]:
    """Returns the answers with the highest mean log-probability per token, best first; all of them as they are."""
    answers = output.choices
    if len(answers) <= number:
        return answers

    def mean_logprob(answer: GenerationOutput) -> float:
        entries = answer.logprobs or ()
        return sum(entry.logprob for entry in entries) / max(1, len(entries))

    return sorted(answers, key=mean_logprob, reverse=True)[:number]
