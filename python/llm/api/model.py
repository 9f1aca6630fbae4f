"""A checkpoint that generates text."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, overload

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from llm.errors import InvalidArgumentError
from llm.inference import (
    Collector,
    Delta,
    Engine,
    EngineConfig,
    GenerationOutput,
    Pooling,
    Prompt,
    Score,
    Session,
    load_engine,
)
from llm.inference.progress import generation_progress
from llm.inference.scoring import embed, rewards, score
from llm.settings.merge import validated
from llm.settings.sampling import SamplingParams
from llm.tokenization import BaseTokenizer

Message = dict[str, Any]
Adapters = str | Sequence[str | None] | None
# Tokens per pass of `embed` and `score`: enough to keep the processor busy, few enough to fit in any memory.
SCORED_TOKENS = 4096


class LLM:
    """A checkpoint that generates text; not thread-safe.

    Args:
        path: A `Checkpoint`, or the directory of a checkpoint or run.
        dtype: `auto` (the checkpoint's own), `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu` or `cuda[:N]`.
        config: Engine limits.
        kv_cache_dtype: `EngineConfig.kv_cache_dtype`: `auto`, `int8` or `fp8`; None leaves it to `config`.
        tensor_parallel_size: `EngineConfig.tensor_parallel_size`: processes, or GPUs, that split the weights; None
            leaves it to `config`. They end with this object, or with `engine.close()`.
        adapters: Directories of adapters by names, one of which each answer may be computed with.

    Raises:
        CheckpointError: Files are missing, damaged or contradictory.
        CapacityError: Not enough memory for one request of the longest context.
        ConfigError: A limit is out of range, the cache can't have this type, or the model can't be split so.
        ProcessLostError: A process that was to hold a part of the model ended.

    Example:
        >>> from llm import LLM, SamplingParams
        >>> model = LLM("runs/demo")  # doctest: +SKIP
        >>> model.generate("ROMEO:", SamplingParams(max_tokens=16)).text  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        dtype: str = "auto",
        *,
        device: str = "auto",
        config: EngineConfig | None = None,
        kv_cache_dtype: str | None = None,
        tensor_parallel_size: int | None = None,
        adapters: Mapping[str, str | os.PathLike[str]] | None = None,
    ) -> None:
        given = {"kv_cache_dtype": kv_cache_dtype, "tensor_parallel_size": tensor_parallel_size}
        changes = {name: value for name, value in given.items() if value is not None}
        config = structs.replace(config or EngineConfig(), **changes)
        self.session = Session(load_engine(path, dtype=dtype, device=device, config=config, adapters=adapters))

    @property
    def engine(self) -> Engine:
        """The engine, shared by `generate`, `stream` and `chat`."""
        return self.session.engine

    @property
    def tokenizer(self) -> BaseTokenizer:
        """The checkpoint's tokenizer."""
        return self.session.tokenizer

    @property
    def default_params(self) -> dict[str, float]:
        """The checkpoint's default sampling values."""
        return self.engine.generation_defaults

    def sampling_params(self, **values: Any) -> SamplingParams:
        """Returns `SamplingParams` of `values`, with the checkpoint's defaults for missing values and None."""
        return validated(self.session.sampling_params(**values))

    @overload
    def generate(
        self,
        prompts: str,
        params: SamplingParams | None = None,
        *,
        progress: bool | None = None,
        add_special_tokens: bool = True,
        adapter: Adapters = None,
    ) -> GenerationOutput: ...
    @overload
    def generate(
        self,
        prompts: list[str] | list[list[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
        add_special_tokens: bool = True,
        adapter: Adapters = None,
    ) -> list[GenerationOutput]: ...
    def generate(
        self,
        prompts: str | list[str] | list[list[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
        add_special_tokens: bool = True,
        adapter: Adapters = None,
    ) -> GenerationOutput | list[GenerationOutput]:
        """Returns continuations of one prompt or of several prompts run together.

        Args:
            prompts: A text, or a list of texts or of token ids; a list returns a list of outputs in the same order.
            params: Sampling parameters, for all prompts or one per prompt; by default the checkpoint's. With `n` above
                1, the `choices` of an output hold all answers to its prompt.
            progress: Whether to show a progress bar; by default for more than 16 answers on a terminal.
            add_special_tokens: Whether to add the tokenizer's special tokens, such as BOS, to texts.
            adapter: Name of the adapter that answers, for all prompts or one per prompt; None is the model itself.

        Raises:
            ContextLengthError: A prompt and its new tokens exceed the context.
            InvalidArgumentError: A prompt is empty, a value is out of range, an adapter is unknown, or there isn't one
                value of `params` or `adapter` per prompt.
            EngineError: The model failed.
        """
        encode = partial(self.session.encode, add_special_tokens=add_special_tokens)
        ids = [encode(prompt) if isinstance(prompt, str) else prompt for prompt in _each_prompt(prompts)]
        columns = zip(ids, self._each_params(params, len(ids)), _each_adapter(adapter, len(ids)), strict=True)
        made = [Prompt(token_ids=token_ids, params=one, adapter=name) for token_ids, one, name in columns]
        outputs = self._run(made, progress)
        return outputs[0] if isinstance(prompts, str) else outputs

    def embed(self, texts: Sequence[str], *, pooling: Pooling = "mean") -> NDArray[np.float32]:
        """Returns one vector of unit length per text, pooled from the model's last hidden states.

        Args:
            texts: Texts to embed; each gets the tokenizer's special tokens, such as BOS.
            pooling: `mean` averages over the tokens of a text; `last` takes the state of its last token.

        Returns:
            fp32 `[N, C]`; the product of two rows is their cosine.

        Raises:
            InvalidArgumentError: A text has no tokens, or the pooling is unknown.
            ContextLengthError: A text is longer than the context.
        """
        ids = [self.session.encode(text) for text in texts]
        return embed(self.engine.whole_model, ids, pooling, SCORED_TOKENS)

    def rewards(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """Returns the reward of each conversation's last answer by a reward model, which `llm reward` trains.

        Args:
            conversations: Messages `{"role": …, "content": …}` in order, up to and with the answer.

        Raises:
            InvalidArgumentError: The model gives no rewards.
            ChatTemplateError: The checkpoint has no chat template, or the template rejects the messages.
            ContextLengthError: A conversation is longer than the context.
        """
        ids = [self.session.conversation(messages) for messages in conversations]
        found: list[float] = rewards(self.engine.whole_model, ids, SCORED_TOKENS).tolist()
        return found

    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[Score]:
        """Returns the log-probability of each continuation after its prompt, token by token.

        Args:
            prompts: Texts of at least one token, including BOS if the tokenizer adds it.
            continuations: One per prompt, encoded separately; start each with a space if one separates it from the
                prompt.

        Raises:
            InvalidArgumentError: A prompt is empty, or there isn't one continuation per prompt.
            ContextLengthError: A prompt and its continuation together are longer than the context.
        """
        if len(prompts) != len(continuations):
            raise InvalidArgumentError(
                f"`continuations` must be one for each of {len(prompts)} prompts, got {len(continuations)}"
            )
        encode = self.session.encode
        pairs = [
            (encode(prompt), self.tokenizer.encode(text)) for prompt, text in zip(prompts, continuations, strict=True)
        ]
        return score(self.engine.whole_model, pairs, SCORED_TOKENS)

    def stream(
        self, prompt: str, params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> Iterator[Delta]:
        """Continues a prompt and yields deltas as they arrive; closing the iterator frees the request's blocks."""
        ids = self.session.encode(prompt)
        return self._stream(Prompt(token_ids=ids, params=self._checked(params), adapter=adapter))

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        adapter: str | None = None,
    ) -> GenerationOutput:
        """Returns the next message of a conversation, with its `reasoning` and `tool_calls` apart from its `text`.

        Args:
            messages: Messages `{"role": …, "content": …}` in order, as in OpenAI's API.
            params: Sampling parameters; by default the checkpoint's.
            tools: Tools that the model may call, as in OpenAI's API: `{"type": "function", "function": {…}}`.
            adapter: Name of the adapter that answers; None is the model itself.

        Raises:
            ChatTemplateError: The checkpoint has no chat template, or the template rejects the messages.
            InvalidArgumentError: The chat template renders no tools.
        """
        return self._run([self._chat_prompt(messages, params, tools, adapter)], progress=False)[0]

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        adapter: str | None = None,
    ) -> Iterator[Delta]:
        """Answers a conversation like `chat` and yields deltas as they arrive, with `parts` if there may be any."""
        return self._stream(self._chat_prompt(messages, params, tools, adapter))

    def _chat_prompt(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None,
        tools: Sequence[Message] | None,
        adapter: str | None,
    ) -> Prompt:
        prompt = self.session.chat(messages, self._checked(params), options={"tools": tools})
        return structs.replace(prompt, adapter=adapter)

    def _checked(self, params: SamplingParams | None) -> SamplingParams:
        """Returns the given parameters, validated, or the checkpoint's defaults."""
        if params is not None and not isinstance(params, SamplingParams):
            raise InvalidArgumentError(f"`params` must be `SamplingParams`, got {params!r}")
        return self.sampling_params() if params is None else validated(params)

    def _each_params(
        self, params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
    ) -> Sequence[SamplingParams]:
        if not isinstance(params, Sequence):
            return [self._checked(params)] * num_prompts
        if len(params) != num_prompts:
            raise InvalidArgumentError(f"`params` must be one for each of {num_prompts} prompts, got {len(params)}")
        return [self._checked(one) for one in params]

    def _run(self, prompts: list[Prompt], progress: bool | None) -> list[GenerationOutput]:
        collector = Collector(prompts)
        total = sum(prompt.params.n for prompt in prompts)
        with (
            generation_progress(total, progress) as on_delta,
            contextlib.closing(self.session.run(prompts)) as deltas,
        ):
            for numbered in deltas:
                collector.add([numbered])
                if on_delta is not None:
                    on_delta(numbered[1])
        return collector.outputs()

    def _stream(self, prompt: Prompt) -> Iterator[Delta]:
        if prompt.params.n != 1:
            raise InvalidArgumentError(f"`n` must be 1 here, got {prompt.params.n}\nhint: `generate` accepts more")
        with contextlib.closing(self.session.run([prompt])) as deltas:
            for _, delta in deltas:
                yield delta


def _each_prompt(prompts: Any) -> Iterator[str | list[int]]:
    """Yields texts, and ids as lists."""
    for prompt in prompts if _is_list(prompts) else [prompts]:
        if not isinstance(prompt, str) and not _is_list(prompt):
            place = " in the list" if _is_list(prompts) else ""
            raise InvalidArgumentError(
                f"`prompts` must be a text, or a list of texts or of lists of token ids, got {prompt!r}{place}\n"
                "hint: the ids of one prompt are a list in the list: `[[1, 2, 3]]`"
            )
        yield prompt if isinstance(prompt, str) else list(prompt)


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def _each_adapter(adapter: Adapters, num_prompts: int) -> Sequence[str | None]:
    if adapter is None or isinstance(adapter, str):
        return [adapter] * num_prompts
    if len(adapter) != num_prompts:
        raise InvalidArgumentError(f"`adapter` must be one for each of {num_prompts} prompts, got {len(adapter)}")
    return adapter
