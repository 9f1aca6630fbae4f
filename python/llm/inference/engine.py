"""The engine, which owns scheduler, cache and model and runs one step at a time."""

import logging
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from llm._rust import FINISH_REASONS, EngineCore, Grammar, RequestParams, StepOutputs
from llm.errors import EngineError, GrammarError, InvalidArgumentError, LLMError
from llm.inference.adapters import ServedAdapters
from llm.inference.first_steps import FirstSteps
from llm.inference.kv_cache import cache_dtype, dtype_name
from llm.inference.outputs import Delta, TokenLogprob
from llm.inference.runners.base import ModelRunner, SharedRunner
from llm.inference.speculation.draft import DraftModel
from llm.models import DecoderModel
from llm.models.costs import kv_bytes_per_token
from llm.models.reward import RewardModel
from llm.settings.engine import EngineConfig
from llm.settings.model import ModelConfig
from llm.settings.sampling import SamplingParams
from llm.tokenization import BaseTokenizer

logger = logging.getLogger(__name__)

# Takes what `EngineCore.take_block_events` returns, on the engine's thread after each step in which the cache changed.
BlockListener: TypeAlias = Callable[[list[tuple[list[int], int | None, list[int], int] | list[int]]], None]

_MAX_PASS_TOKENS = 256
_REASONS = FINISH_REASONS[:3]
_FAILURES = {FINISH_REASONS.index("error"): EngineError, FINISH_REASONS.index("grammar"): GrammarError}
NO_TOKEN = 2**32 - 1  # in `StepOutputs.token_ids`: the request ended without a new token


class Engine:
    """Schedules requests, runs the model and updates the requests; not thread-safe, so one thread must own it.

    Args:
        core: The Rust scheduler, sampler and detokenizer.
        runner: The model runner, which computes logits.
        tokenizer: The model's tokenizer.
        max_model_len: Longest context in tokens.
        draft: A smaller model that proposes draft tokens.
        limits: Limits of the scheduler.

    Example:
        >>> from llm import LLM
        >>> engine = LLM("runs/demo").engine  # doctest: +SKIP
        >>> request_id = engine.add_request([1, 2, 3], SamplingParams(max_tokens=4))  # doctest: +SKIP
        >>> while engine.has_unfinished():  # doctest: +SKIP
        ...     for request_id, delta in engine.step(): ...
    """

    def __init__(
        self,
        core: EngineCore,
        runner: ModelRunner,
        tokenizer: BaseTokenizer,
        max_model_len: int,
        *,
        draft: DraftModel | None = None,
        limits: EngineConfig | None = None,
    ) -> None:
        self.core = core
        self.runner = runner
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.limits = limits or EngineConfig()
        self.draft = draft
        self.generation_defaults: dict[str, float] = {}  # the checkpoint's sampling values, as defaults
        self.adapters = ServedAdapters(runner)
        self.block_listener: BlockListener | None = None
        self._next_id = 0
        self._first_steps = FirstSteps()

    def add_request(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, choice_index: int = 0, priority: int = 0
    ) -> int:
        """Queues a request for one answer and returns its id.

        Args:
            prompt_ids: Token ids of the prompt, at least one.
            params: Sampling parameters; without a seed, a random seed is drawn.
            choice_index: Number of the random stream to use among those of the same seed.
            priority: Lower values run first; equal values run in order of arrival.

        Raises:
            ContextLengthError: The prompt and its new tokens exceed the context.
            CapacityError: The request can never fit the cache.
            QueueFullError: Too many requests or tokens are waiting.
            InvalidArgumentError: The prompt is empty or contains an unknown token id, a value of `params` is out of
                range, its grammar is invalid, or `params.n` is above 1.
        """
        if params.n != 1:
            raise InvalidArgumentError(f"`n` must be 1 here, got {params.n}\nhint: `add_choices` accepts more")
        grammar = self.compile_grammar(params)
        return self._add(prompt_ids, params, priority, choice_index=choice_index, grammar=grammar)[0]

    def add_choices(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        kept_special_ids: Sequence[int] = (),
        grammar: Grammar | None = None,
        adapter: str | None = None,
    ) -> range:
        """Queues a request for `params.n` answers to one prompt and returns their ids; the prompt is computed once.

        Args:
            prompt_ids: Token ids of the prompt, at least one.
            params: Sampling parameters; without a seed, a random seed is drawn.
            priority: Lower values run first; equal values run in order of arrival.
            kept_special_ids: Special tokens whose text is kept even with `skip_special_tokens`.
            grammar: The grammar of `params.structured_outputs`, which `compile_grammar` made on any thread.
            adapter: Name of one of `adapters`; None for the model itself.

        Returns:
            One id per choice. Each choice gets deltas, ends and can be aborted like a separate request, and its tokens
            equal those of a request with the same `seed` and the choice's `choice_index`.

        Raises:
            LLMError: The same errors as in `add_request`; `structured_outputs` comes without its grammar.
        """
        if grammar is None and params.structured_outputs is not None:
            hint = "pass `grammar=engine.compile_grammar(params)`"
            raise InvalidArgumentError(f"`structured_outputs` needs its compiled grammar here\nhint: {hint}")
        number = self.adapters.number_of(adapter)
        options = {"kept_special_ids": kept_special_ids, "grammar": grammar}
        ids = self._add(prompt_ids, params, priority, adapter=number, **options)
        self.adapters.hold(ids, number)
        return ids

    def _add(
        self, prompt_ids: Sequence[int], params: SamplingParams, priority: int, *, adapter: int = 0, **options: Any
    ) -> range:
        if isinstance(self.runner.model, RewardModel):
            raise InvalidArgumentError(
                "the model is a reward model: it scores answers and generates no text\n"
                "hint: `LLM.rewards`, or `POST /v1/score`"
            )
        if params.seed is None:
            params = msgspec.structs.replace(params, seed=secrets.randbits(63))
        ids = range(self._next_id, self._next_id + params.n)
        core_params = RequestParams(params, **options)
        token_ids, count = _as_ids(prompt_ids), params.n
        self.core.add_choices(ids.start, token_ids, core_params, priority=priority, num_choices=count, adapter=adapter)
        self._next_id = ids.stop
        self._first_steps.add(ids.start)
        return ids

    def compile_grammar(self, params: SamplingParams) -> Grammar | None:
        """Compiles the grammar of `structured_outputs`, or returns it from the cache; callable from any thread.

        Raises:
            InvalidArgumentError: The grammar is invalid, has a part that would not be enforced, or is too large.
            QueueFullError: Too many grammars are being compiled.
        """
        if (form := params.structured_outputs) is None:
            return None
        kind, source = form.source
        return self.core.compile_grammar(kind, source, is_compact=form.disable_any_whitespace)

    def abort(self, request_id: int) -> bool:
        """Drops a request in any state and frees its blocks; returns False if the id is unknown or has ended."""
        self._first_steps.drop(request_id)
        self.adapters.release(request_id)
        return self.core.abort(request_id)

    def has_unfinished(self) -> bool:
        """Returns whether any request is waiting or running."""
        return self.core.has_unfinished()

    def step(self) -> list[tuple[int, Delta | LLMError]]:
        """Runs one step: schedules requests, runs the model and updates the requests.

        Returns:
            The id of each request that got a token or failed in this step, with its delta or error. If the model's pass
            fails, all requests of the step fail with an `EngineError` and the engine stays usable.

        Raises:
            ProcessLostError: A process that holds a part of the model has ended; the engine can't be used any more.
        """
        plan = self.core.schedule()
        if plan is None:
            return []
        self._first_steps.note(plan)
        try:
            logits = self.runner.run(plan).numpy()
        except RuntimeError as error:
            return self._fail(error)
        outputs = self.core.update(logits)
        self._tell_blocks()
        if self.draft is not None:
            self._guess(self.draft, outputs)
        events = self._first_steps.stamped(_deltas(outputs))
        for request_id, event in events:
            if isinstance(event, LLMError) or event.finish_reason is not None:
                self.adapters.release(request_id)
        return events

    @property
    def whole_model(self) -> DecoderModel:
        """The model, for passes of the caller's own.

        Raises:
            InvalidArgumentError: This process has only a part of it.
        """
        if isinstance(self.runner, SharedRunner):
            raise InvalidArgumentError(
                f"embeddings and scores need the whole model in one process, got 1/{self.limits.tensor_parallel_size} "
                "of it\nhint: leave `tensor_parallel_size` out, or ask for `prompt_logprobs`"
            )
        return self.runner.model

    @property
    def model_config(self) -> ModelConfig:
        """The config of the whole model."""
        return self.runner.config if isinstance(self.runner, SharedRunner) else self.runner.model.config

    def close(self) -> None:
        """Ends the other processes of a model that is split over several; the engine can't be used any more."""
        if isinstance(self.runner, SharedRunner):
            self.runner.close()

    @property
    def max_pass_tokens(self) -> int:
        """Largest number of tokens in a step."""
        return self.limits.max_batch_tokens or _MAX_PASS_TOKENS

    @property
    def cache_format(self) -> tuple[str, int]:
        """The type of cached keys and values, and the bytes of one token's over all layers, in this process."""
        model = self.runner.model
        dtype = cache_dtype(self.limits.kv_cache_dtype, model.dtype)
        return dtype_name(dtype), kv_bytes_per_token(model.config, dtype)

    def stats(self) -> dict[str, int]:
        """Returns the engine's statistics: counts of requests, blocks, tokens and adapters."""
        return self.core.stats() | {"num_adapters": len(self.adapters)}

    def _guess(self, draft: DraftModel, outputs: StepOutputs) -> None:
        """Drafts tokens for requests that got a token in this step; a failure turns drafting off from then on."""
        goes_on = dict(zip(outputs.request_ids.tolist(), (outputs.finish_reasons == 0).tolist(), strict=True))
        try:
            draft.guess(self.core, [request_id for request_id, is_running in goes_on.items() if is_running])
        except RuntimeError:
            logger.exception("the draft model failed; answers continue without draft tokens")
            self.draft = None

    def _tell_blocks(self) -> None:
        if self.block_listener is not None and (events := self.core.take_block_events()):
            self.block_listener(events)

    def _fail(self, error: RuntimeError) -> list[tuple[int, Delta | LLMError]]:
        message = f"the model failed in this request's step: {error}"
        failed = self.core.fail_step()
        self._tell_blocks()
        self._first_steps.forget(failed)
        for request_id in failed:
            self.adapters.release(request_id)
        return [(request_id, EngineError(message)) for request_id in failed]


def _as_ids(prompt_ids: Sequence[int]) -> NDArray[np.uint32]:
    try:
        return np.asarray(prompt_ids, dtype=np.uint32)
    except (OverflowError, TypeError, ValueError):
        raise InvalidArgumentError("token ids must be integers from 0 to below the vocabulary size") from None


def _deltas(outputs: StepOutputs) -> list[tuple[int, Delta | LLMError]]:
    """Converts the arrays of a step to one delta or error per request."""
    found: list[tuple[int, Delta | LLMError]] = []
    errors = dict(outputs.errors)
    stop_indices = dict(outputs.stop_strings)
    cached_tokens = dict(outputs.cached_tokens)
    prompts = {
        request_id: tuple(TokenLogprob(token_id, logprob, tuple(top), rank) for token_id, logprob, rank, top in tokens)
        for request_id, tokens in outputs.prompt_logprobs
    }
    columns = zip(
        outputs.request_ids.tolist(),
        outputs.token_ids.tolist(),
        outputs.texts,
        outputs.finish_reasons.tolist(),
        outputs.logprobs.tolist(),
        outputs.ranks.tolist(),
        outputs.top_logprobs,
        strict=True,
    )
    for request_id, token_id, text, finish, logprob, rank, top in columns:
        if finish in _FAILURES:
            found.append((request_id, _FAILURES[finish](errors[request_id])))
            continue
        finish_reason = _REASONS[finish]
        logprobs = None
        if not math.isnan(logprob):
            logprobs = (TokenLogprob(token_id, logprob, () if top is None else tuple(zip(*top, strict=True)), rank),)
        new_ids = () if token_id == NO_TOKEN else (token_id,)
        stop_index = stop_indices.get(request_id) if finish_reason else None
        num_cached = cached_tokens.get(request_id, 0)
        delta = Delta(text, new_ids, finish_reason, logprobs, prompts.get(request_id), stop_index, num_cached)
        found.append((request_id, delta))
    return found
