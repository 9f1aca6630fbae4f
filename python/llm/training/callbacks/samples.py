"""Text that the model writes while it learns."""

import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import msgspec
import numpy as np
import torch
from torch import nn

from llm.checkpoint import Checkpoint, Run
from llm.data import BaseDataModule, ChatDataModule, TokenBatch
from llm.errors import LLMError, LLMWarning
from llm.inference import Engine, EngineConfig, build_engine
from llm.inference.answer_format import answer_format
from llm.inference.chat_prompt import chat_ids
from llm.inference.runners.base import ModelRunner
from llm.models import DecoderModel
from llm.models.costs import kv_bytes_per_token
from llm.settings.run import RunConfig
from llm.settings.sampling import SamplingParams
from llm.tokenization import BaseTokenizer
from llm.training.callbacks.base import Callback
from llm.training.distributed import Distributed, is_sharded, over_processes
from llm.training.metrics import FitStart
from llm.training.sharded_passes import ShardedRunner, follow

_PROMPT_TOKENS = 8
# Without settings of its own, a small model reads best a little below its own distribution.
_TEMPERATURE = 0.8
_TOP_K = 50


class SampleWriter(Callback):
    """Lets the model continue a prompt at each validation or checkpoint, always with the same seed.

    The texts go to the run's `samples.jsonl`. The engine's sampler draws from random numbers of its own, so training
    draws the same numbers with and without samples. A model that is spread over processes is run by all of them, at
    validations only, which they reach at the same time.

    Args:
        run: The run whose model writes.
        tokenizer: The model's tokenizer.
        prompt_ids: Token ids to continue, at least one.
        max_tokens: Number of new tokens.
        params: Sampling parameters; by default a temperature of 0.8 among the 50 likeliest tokens.
    """

    in_all_processes = True

    def __init__(
        self,
        run: Run,
        tokenizer: BaseTokenizer,
        prompt_ids: Sequence[int],
        max_tokens: int,
        params: SamplingParams | None = None,
    ) -> None:
        self.run = run
        self.tokenizer = tokenizer
        self.prompt_ids = list(prompt_ids)
        self.max_tokens = max_tokens
        self.params = params or SamplingParams(temperature=_TEMPERATURE, top_k=_TOP_K, seed=0)
        self._model: DecoderModel | None = None
        self._is_sharded = False
        self._dtype = torch.float32
        self._last_step = -1

    @classmethod
    def from_config(
        cls, config: RunConfig, run: Run, tokenizer: BaseTokenizer, data: BaseDataModule
    ) -> "SampleWriter | None":
        """Returns the writer that a run's settings ask for; None if they turn samples off."""
        settings, values = config.training, config.generation
        if config.preference.loss == "reward":
            return None
        is_chat = isinstance(data, ChatDataModule)
        prompt_ids = _asked_ids(settings.sample_prompt, tokenizer, is_chat) or _first_ids(data)
        # A prompt and its continuation share the context.
        prompt_ids = prompt_ids[-max(1, config.model.max_position_embeddings // 2) :]
        max_tokens = min(settings.sample_tokens, config.model.max_position_embeddings - len(prompt_ids))
        if max_tokens < 1 or not prompt_ids:
            return None
        params = SamplingParams(
            temperature=_TEMPERATURE if values.temperature is None else values.temperature,
            top_k=_TOP_K if values.top_k is None else values.top_k,
            top_p=1.0 if values.top_p is None else values.top_p,
            seed=0,
            stop=tokenizer.chat_stop if is_chat else (),
        )
        return cls(run, tokenizer, prompt_ids, max_tokens, params)

    def on_fit_start(self, start: FitStart) -> None:
        """Removes the samples of steps that will be repeated."""
        self._is_sharded = start.model is not None and is_sharded(start.model)
        self._dtype = getattr(torch, start.precision)
        if not Distributed.is_main_process():
            self._model = start.model if isinstance(start.model, DecoderModel) and self._is_sharded else None
            return
        self._model = start.model if isinstance(start.model, DecoderModel) else None
        self.run.samples.rewind(start.first_step)
        self._last_step = max((record["step"] for record in self.run.samples.read()), default=-1)

    def on_validation_end(self, step: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        """Writes the sample of this step."""
        if self._model is None:
            return
        if self._is_sharded:
            self._write_together(self._model, step)
        else:
            self._write(self._model, step)

    def on_checkpoint(self, step: int, checkpoint: Checkpoint) -> None:  # noqa: ARG002
        """Writes the sample of this step unless a validation has."""
        if self._model is not None and not self._is_sharded:
            self._write(self._model, step)

    def _write_together(self, model: DecoderModel, step: int) -> None:
        """Writes the sample of this step in the main process, with the help of all others."""
        is_main = Distributed.is_main_process()
        is_wanted = torch.tensor(int(is_main and step > self._last_step), device=model.device)
        if not over_processes(is_wanted):
            return
        if is_main:
            runner = ShardedRunner(model, self._dtype)
            try:
                self._write(model, step, runner)
            except BaseException:
                runner.end(failed=True)
                raise
            runner.end()
        else:
            with _at_rest(model):
                follow(model, self._dtype)

    def _write(self, model: DecoderModel, step: int, runner: ModelRunner | None = None) -> None:
        if step <= self._last_step:
            return
        self._last_step = step
        try:
            text = write_text(model, self.tokenizer, self.prompt_ids, self.max_tokens, self.params, runner=runner)
        except LLMError as error:  # such as logits that overflow: the next step tells what is wrong with the training
            warnings.warn(f"no sample at step {step}: {str(error).splitlines()[0]}", LLMWarning, stacklevel=2)
            return
        self.run.samples.append({"step": step, "prompt": self.tokenizer.decode(self.prompt_ids), "text": text})


def write_text(
    model: DecoderModel,
    tokenizer: BaseTokenizer,
    prompt_ids: Sequence[int],
    max_tokens: int,
    params: SamplingParams,
    *,
    runner: ModelRunner | None = None,
) -> str:
    """Returns a continuation of `prompt_ids` by a model in training, which is left as it was.

    Args:
        model: The model.
        tokenizer: The model's tokenizer.
        prompt_ids: Token ids to continue, at least one.
        max_tokens: Number of new tokens.
        params: Sampling parameters.
        runner: What runs the model; None selects what suits the device.
    """
    with _at_rest(model):
        engine = _engine(model, tokenizer, len(prompt_ids) + max_tokens, runner)
        engine.add_request(prompt_ids, msgspec.structs.replace(params, max_tokens=max_tokens))
        return "".join(_texts(engine))


def _texts(engine: Engine) -> Iterator[str]:
    while engine.has_unfinished():
        for _, delta in engine.step():
            if isinstance(delta, Exception):
                raise delta
            yield delta.text


def _engine(model: DecoderModel, tokenizer: BaseTokenizer, max_model_len: int, runner: ModelRunner | None) -> Engine:
    """Returns an engine for one request, with a cache of its size."""
    config = EngineConfig(max_model_len=max_model_len, max_running_requests=1, enable_cuda_graphs=False)
    block_bytes = config.block_size * kv_bytes_per_token(model.config, model.dtype)
    num_blocks = math.ceil(max_model_len / config.block_size) + 1
    limits = msgspec.structs.replace(config, kv_cache_memory_bytes=num_blocks * block_bytes)
    return build_engine(model, tokenizer, limits, runner=runner)


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """Puts a model into eval mode without gradients or compilation, and back."""
    was_training = model.training
    model.eval()
    try:
        # Nothing is compiled before PyTorch's compiler is loaded, which takes 157 MiB and seconds.
        is_loaded = "torch._dynamo" in sys.modules
        with torch.no_grad(), torch.compiler.set_stance("force_eager") if is_loaded else nullcontext():
            yield
    finally:
        model.train(was_training)


def _asked_ids(prompt: str | None, tokenizer: BaseTokenizer, is_chat: bool) -> list[int]:
    """Returns the ids of a prompt that the settings give, in a conversation as what the user says."""
    if not prompt:
        return []
    if not is_chat or tokenizer.chat_template is None:
        return tokenizer.encode(prompt)
    return chat_ids(tokenizer, [{"role": "user", "content": prompt}], {}, answer_format(tokenizer))


def _first_ids(data: BaseDataModule) -> list[int]:
    """Returns the first tokens of the held-out text, or of the training text if nothing is held out.

    Of conversations, they are what the first one asks.
    """
    if isinstance(data, ChatDataModule):
        return data.prompt_ids()
    dataset = data.validation_dataset() or data.train_dataset()
    batch = dataset.batch(np.zeros(1, dtype=np.int64))
    return batch.token_ids[:_PROMPT_TOKENS].tolist() if isinstance(batch, TokenBatch) else []
