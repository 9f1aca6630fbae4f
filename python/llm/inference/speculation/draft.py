"""Drafts tokens with a smaller model, for the main model to verify in one pass."""

from dataclasses import dataclass, field

import numpy as np

from llm._rust import EngineCore
from llm.inference.runners.base import ModelRunner, Step


@dataclass
class _Followed:
    """The part of a request in the draft model's cache: its first `num_known` tokens, then draft tokens."""

    blocks: list[int]
    num_known: int = 0
    guesses: list[int] = field(default_factory=list)


@dataclass
class _Row:
    """One request's row in the passes of one `guess` call."""

    request_id: int
    state: _Followed
    tokens: list[int]
    num_guesses: int
    guesses: list[int] = field(default_factory=list)


class DraftModel:
    """Drafts tokens greedily with a smaller model of the same vocabulary.

    The draft model has its own cache. Before drafting, it reads the tokens of a request that it hasn't seen: the prompt
    once, then the tokens that differ from its drafts. A request that doesn't fit in that cache gets no draft tokens.

    Args:
        runner: The draft model's runner.
        num_blocks: Number of blocks in the draft model's cache.
        block_size: Number of tokens per block.
        num_draft_tokens: Largest number of draft tokens per request and step.
        max_model_len: The draft model's longest context.
        vocab_size: Number of token ids that both models have.

    Source: Leviathan, Kalman, Matias 2023, «Fast Inference from Transformers via Speculative Decoding», with draft
    tokens of probability 1 (see ADR 11).
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        num_blocks: int,
        block_size: int,
        num_draft_tokens: int,
        max_model_len: int,
        vocab_size: int,
    ) -> None:
        self.runner = runner
        self.block_size = block_size
        self.num_draft_tokens = num_draft_tokens
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self._free = list(range(num_blocks))
        self._followed: dict[int, _Followed] = {}

    def guess(self, core: EngineCore, request_ids: list[int]) -> None:
        """Drafts the next tokens of requests that just got one, and passes the drafts to `core`.

        Raises:
            RuntimeError: The draft model's pass failed.
        """
        states = list(self._followed.items())
        for request_id in [known for known, state in states if core.request_tokens(known, state.num_known) is None]:
            self._forget(request_id)
        rows = [row for request_id in request_ids if (row := self._row(core, request_id, request_ids)) is not None]
        going_on = rows
        while going_on:
            for row, token in zip(going_on, self._next_tokens(going_on), strict=True):
                row.guesses.append(token)
                row.tokens = [token]
            going_on = [row for row in going_on if len(row.guesses) < row.num_guesses]
        for row in rows:
            row.state.guesses = row.guesses[:-1]  # the model hasn't read the last one yet
            row.state.num_known -= len(row.state.guesses)
            core.set_drafts(row.request_id, row.guesses)

    def _row(self, core: EngineCore, request_id: int, request_ids: list[int]) -> _Row | None:
        """Returns a request's row with its unread tokens and blocks for drafts, or None if it gets no drafts."""
        state = self._followed.get(request_id) or _Followed([])
        found = core.request_tokens(request_id, state.num_known)
        if found is None:
            return None
        new, num_left = found[0].tolist(), found[1]
        num_tokens = state.num_known + len(new)
        num_guesses = min(self.num_draft_tokens, num_left - 1, self.max_model_len - num_tokens)
        if num_guesses < 1 or not self._make_room(state, num_tokens + num_guesses - 1, request_ids):
            self._forget(request_id)
            return None
        self._followed[request_id] = state
        num_right = 0
        for guess, token in zip(state.guesses, new[:-1], strict=False):
            if guess != token:
                break
            num_right += 1
        state.num_known += num_right
        return _Row(request_id, state, new[num_right:], num_guesses)

    def _make_room(self, state: _Followed, num_tokens: int, request_ids: list[int]) -> bool:
        """Allocates blocks for `num_tokens` tokens, if necessary from requests that get no drafts in this step."""
        num_missing = -(-num_tokens // self.block_size) - len(state.blocks)
        idle = [known for known in self._followed if known not in request_ids] if num_missing > len(self._free) else []
        while num_missing > len(self._free) and idle:
            self._forget(idle.pop())
        if num_missing > len(self._free):
            self._free += state.blocks
            state.blocks = []
            return False
        state.blocks += [self._free.pop() for _ in range(num_missing)]
        return True

    def _forget(self, request_id: int) -> None:
        if (state := self._followed.pop(request_id, None)) is not None:
            self._free += state.blocks

    def _next_tokens(self, rows: list[_Row]) -> list[int]:
        """Runs the draft model over the rows' tokens and returns the most likely token after each row."""
        spans = [(row.state.num_known, row.state.num_known + len(row.tokens)) for row in rows]
        tables = np.zeros((len(rows), max(len(row.state.blocks) for row in rows)), dtype=np.int32)
        for table, row in zip(tables, rows, strict=True):
            table[: len(row.state.blocks)] = row.state.blocks
        token_ids = np.array([token for row in rows for token in row.tokens], dtype=np.int64)
        logits = self.runner.run(Step.of(spans, tables, token_ids, self.block_size))
        for row in rows:
            row.state.num_known += len(row.tokens)
        tokens: list[int] = logits[:, : self.vocab_size].argmax(dim=1).tolist()
        return tokens
