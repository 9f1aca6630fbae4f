"""A smaller model guesses what a larger one will say, for the larger one to check in one pass."""

from dataclasses import dataclass, field

import numpy as np

from llm._rust import EngineCore
from llm.inference.runners.base import ModelRunner, Step


@dataclass
class _Followed:
    """What the smaller model's cache has of a request: its first `num_known` tokens, and then guesses."""

    blocks: list[int]
    num_known: int = 0
    guesses: list[int] = field(default_factory=list)


@dataclass
class _Row:
    """A request's part of the passes of one `guess`."""

    request_id: int
    state: _Followed
    tokens: list[int]
    num_guesses: int
    guesses: list[int] = field(default_factory=list)


class DraftModel:
    """Greedy guesses by a smaller model with the same vocabulary.

    It has a cache of its own and reads what it hasn't seen of a request before it guesses: the prompt once, then the
    tokens that were not its guesses. A request that finds no room in that cache goes without guesses.

    Args:
        runner: Of the smaller model.
        num_blocks: Blocks of its cache.
        block_size: Tokens a block.
        num_draft_tokens: Guessed at most, for each request and step.
        max_model_len: The smaller model's longest context.
        vocab_size: Ids that both models have.

    Source: Leviathan, Kalman, Matias 2023, «Fast Inference from Transformers via Speculative Decoding», with guesses of
    probability 1 (see ADR 11).
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
        """Guesses the next tokens of requests that just got one, and tells `core`.

        Raises:
            RuntimeError: The model's pass failed.
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
            row.state.guesses = row.guesses[:-1]  # nobody has read the last one yet
            row.state.num_known -= len(row.state.guesses)
            core.set_drafts(row.request_id, row.guesses)

    def _row(self, core: EngineCore, request_id: int, request_ids: list[int]) -> _Row | None:
        """The request with what is to be read of it, and room for its guesses; `None` if there are to be none."""
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
        """Takes blocks for `num_tokens` tokens, if need be of requests that get no guesses now."""
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
        """Reads the rows' tokens; the likeliest token after each row."""
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
