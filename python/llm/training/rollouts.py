"""Answers drawn by the inference engine on the weights that are being trained."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm._rust import StepPlan
from llm.errors import InternalError
from llm.inference import Collector, Engine, EngineConfig, GenerationOutput, Prompt, Session, build_engine
from llm.inference.kv_cache import KVCache, blocks_within
from llm.inference.load import model_runner
from llm.inference.runners.base import ModelRunner, Step
from llm.models import DecoderModel
from llm.models.costs import kv_bytes_per_token
from llm.settings.sampling import SamplingParams
from llm.tokenization import BaseTokenizer
from llm.training.distributed import is_sharded
from llm.training.gathered import gathered
from llm.training.merged import MergedModel, can_merge

# More requests at once don't make a step's products faster, but need more memory.
_MAX_RUNNING = 256


@dataclass(frozen=True)
class Answer:
    """An answer that the engine drew.

    Attributes:
        token_ids: Its tokens, the end token included.
        logprobs: The engine's log-probability of each token.
        text: Its text, without end token and stop text.
        is_truncated: Whether it was cut at the longest length.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    is_truncated: bool


class RolloutEngine:
    """The inference engine in a training process.

    The engine reads the weights that training writes, in the same memory. After a step of the optimizer, `take_over`
    makes what is derived from them anew: a few small vectors, and an empty prefix cache. Adapters are merged into a
    copy of the matrices that they belong to. Of a model that is sharded over processes, the engine reads a whole copy,
    which `release` frees.

    Args:
        tokenizer: The model's tokenizer.
        max_model_len: Longest prompt with its answer, in tokens.
        num_answers: Number of answers drawn at once.
        temperature: Temperature of the answers.
        limits: Limits of the engine; None takes the defaults.
    """

    def __init__(
        self,
        tokenizer: BaseTokenizer,
        max_model_len: int,
        num_answers: int,
        temperature: float = 1.0,
        limits: EngineConfig | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.limits = limits or EngineConfig(
            max_model_len=max_model_len, max_running_requests=min(num_answers, _MAX_RUNNING), enable_cuda_graphs=False
        )
        self.handover_s = 0.0
        self._cache: KVCache | None = None
        self._session: Session | None = None
        self._merged: MergedModel | None = None
        self._gathered: DecoderModel | None = None

    @property
    def engine(self) -> Engine | None:
        """The engine of the last weights; None before the first `take_over`."""
        return None if self._session is None else self._session.engine

    def take_over(self, model: DecoderModel) -> None:
        """Makes an engine for the weights that the model has now.

        Of a sharded model, these are those of the first call after `release`, which all processes make at once.
        """
        begin = time.perf_counter()
        if is_sharded(model):
            self._gathered = self._gathered or gathered(model, _gathered_dtype(model))
            model = self._gathered
        if self._cache is None:
            self._cache = self._new_cache(model)
            self._merged = MergedModel(model) if can_merge(model) else None
        if self._merged is not None:
            model = self._merged.refresh()
        runner = model_runner(model, self._cache, self.limits, self.limits.max_model_len or 1)
        if self.temperature != 1:
            runner = _Tempered(runner, self.temperature)
        engine = build_engine(model, self.tokenizer, self.limits, runner=runner, cache=self._cache)
        self._session = Session(engine)
        self.handover_s = time.perf_counter() - begin

    def release(self) -> None:
        """Frees the copy of a sharded model's weights, which have changed or are no longer needed."""
        if self._gathered is not None:
            self._gathered = self._session = None

    def draw(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[list[Answer]]:
        """Returns the answers to each prompt, as many as its `params.n`; all prompts are answered side by side.

        Raises:
            LLMError: A prompt and its answer don't fit the context, or the model failed.
        """
        assert self._session is not None  # noqa: S101 (`take_over` comes first)
        asked = [Prompt(token_ids=list(ids), params=one) for ids, one in zip(prompts, params, strict=True)]
        collector = Collector(asked)
        collector.add(self._session.run(asked))
        return [[_answer(one) for one in output.choices] for output in collector.outputs()]

    def params(self, count: int, seed: int, max_tokens: int) -> SamplingParams:
        """Returns the parameters of a group of answers, drawn from the whole distribution."""
        stop = self.tokenizer.chat_stop
        # The logits are divided by the temperature before the engine sees them, so that its log-probabilities are
        # those of the draws.
        return SamplingParams(n=count, seed=seed, max_tokens=max_tokens, logprobs=0, temperature=1.0, stop=stop)

    def greedy(self, max_tokens: int) -> SamplingParams:
        """Returns the parameters of the likeliest answer."""
        return SamplingParams(temperature=0.0, max_tokens=max_tokens, logprobs=0, stop=self.tokenizer.chat_stop)

    def _new_cache(self, model: DecoderModel) -> KVCache:
        limits = self.limits
        num_blocks = blocks_within(
            limits.kv_cache_memory_bytes,
            kv_bytes_per_token(model.config, model.dtype) * limits.block_size,
            math.ceil((limits.max_model_len or 1) / limits.block_size),
            limits.max_running_requests,
            model.device,
        )
        return KVCache.allocate(model.config, num_blocks, limits.block_size, model.dtype, model.device)


class _Tempered:
    """A runner whose logits are divided by a temperature."""

    def __init__(self, runner: ModelRunner, temperature: float) -> None:
        self.runner = runner
        self.model = runner.model
        self.temperature = temperature

    @property
    def backend(self) -> str:
        """Returns what runs the model; see `ModelRunner.backend`."""
        return self.runner.backend

    @torch.inference_mode()  # in which PyTorch's runner makes its logits
    def run(self, plan: StepPlan | Step) -> Tensor:
        """Runs the plan's tokens; see `ModelRunner.run`."""
        return self.runner.run(plan).div_(self.temperature)


def _gathered_dtype(model: DecoderModel) -> torch.dtype:
    """Returns the number type of a sharded model's blocks in a pass, which is that of products on a GPU."""
    place = model.device.type
    return torch.get_autocast_dtype(place) if place == "cuda" and torch.is_autocast_enabled(place) else model.dtype


def _answer(output: GenerationOutput) -> Answer:
    logprobs = tuple(entry.logprob for entry in output.logprobs or ())
    if len(logprobs) != len(output.token_ids):
        raise InternalError("an answer has tokens without log-probabilities; please report it")
    return Answer(output.token_ids, logprobs, output.text, output.finish_reason == "length")


def impossible_ids(tokenizer: BaseTokenizer, vocab_size: int) -> Tensor:
    """Returns the ids that the engine never draws, int64 `[N]`: padding, and those without an entry."""
    padding = set() if tokenizer.pad_id is None else {tokenizer.pad_id} - set(tokenizer.eos_ids)
    return torch.tensor(sorted({*padding, *range(tokenizer.vocab_size, vocab_size)}), dtype=torch.int64)
