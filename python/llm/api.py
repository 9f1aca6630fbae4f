"""The public verbs: train a model, run it, evaluate it, serve it."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from llm.checkpoint import Checkpoint
from llm.errors import ConfigError, InvalidArgumentError
from llm.evaluation import Report, evaluate_files
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
from llm.inference.scoring import embed, score
from llm.settings.evaluation import evaluation_config
from llm.settings.merge import Override, validated
from llm.settings.names import full_name_or_error
from llm.settings.run import RunConfig
from llm.settings.sampling import SamplingParams
from llm.settings.server import server_config
from llm.tokenization import BaseTokenizer
from llm.tokenization.files import write_bytes
from llm.training import Callback, launch
from llm.training import resume as resume_run

Message = dict[str, Any]
# Tokens per pass of `embed` and `score`: enough to keep the processor busy, few enough to fit in any memory.
SCORED_TOKENS = 4096


class LLM:
    """A checkpoint that generates text; not thread-safe.

    Args:
        path: A `Checkpoint`, or the directory of a checkpoint or run.
        dtype: `auto` (the checkpoint's own), `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu` or `cuda[:N]`.
        config: Engine limits.

    Raises:
        CheckpointError: Files are missing, damaged or contradictory.
        CapacityError: Not enough memory for one request of the longest context.

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
    ) -> None:
        self.session = Session(load_engine(path, dtype=dtype, device=device, config=config))

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
    ) -> GenerationOutput: ...
    @overload
    def generate(
        self,
        prompts: list[str] | list[list[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
        add_special_tokens: bool = True,
    ) -> list[GenerationOutput]: ...
    def generate(
        self,
        prompts: str | list[str] | list[list[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
        add_special_tokens: bool = True,
    ) -> GenerationOutput | list[GenerationOutput]:
        """Returns continuations of one prompt or of several prompts run together.

        Args:
            prompts: A text, or a list of texts or of token ids; a list returns a list of outputs in the same order.
            params: Sampling parameters, for all prompts or one per prompt; by default the checkpoint's. With `n` above
                1, the `choices` of an output hold all answers to its prompt.
            progress: Whether to show a progress bar; by default for more than 16 answers on a terminal.
            add_special_tokens: Whether to add the tokenizer's special tokens, such as BOS, to texts.

        Raises:
            ContextLengthError: A prompt and its new tokens exceed the context.
            InvalidArgumentError: A prompt is empty, a value is out of range, or there isn't one `params` per prompt.
            EngineError: The model failed.
        """
        texts = [prompts] if isinstance(prompts, str) else prompts
        encode = partial(self.session.encode, add_special_tokens=add_special_tokens)
        ids = [encode(text) if isinstance(text, str) else list(text) for text in texts]
        pairs = zip(ids, self._each_params(params, len(ids)), strict=True)
        outputs = self._run([Prompt(token_ids=token_ids, params=one) for token_ids, one in pairs], progress)
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
        return embed(self.engine.runner.model, ids, pooling, SCORED_TOKENS)

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
        return score(self.engine.runner.model, pairs, SCORED_TOKENS)

    def stream(self, prompt: str, params: SamplingParams | None = None) -> Iterator[Delta]:
        """Continues a prompt and yields deltas as they arrive; closing the iterator frees the request's blocks."""
        return self._stream(Prompt(token_ids=self.session.encode(prompt), params=self._checked(params)))

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
    ) -> GenerationOutput:
        """Returns the next message of a conversation, with its `reasoning` and `tool_calls` apart from its `text`.

        Args:
            messages: Messages `{"role": …, "content": …}` in order, as in OpenAI's API.
            params: Sampling parameters; by default the checkpoint's.
            tools: Tools that the model may call, as in OpenAI's API: `{"type": "function", "function": {…}}`.

        Raises:
            ChatTemplateError: The checkpoint has no chat template, or the template rejects the messages.
            InvalidArgumentError: The chat template renders no tools.
        """
        return self._run([self._chat_prompt(messages, params, tools)], progress=False)[0]

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
    ) -> Iterator[Delta]:
        """Answers a conversation like `chat` and yields deltas as they arrive, with `parts` if there may be any."""
        return self._stream(self._chat_prompt(messages, params, tools))

    def _chat_prompt(
        self, messages: Sequence[Message], params: SamplingParams | None, tools: Sequence[Message] | None
    ) -> Prompt:
        return self.session.chat(messages, self._checked(params), options={"tools": tools})

    def _checked(self, params: SamplingParams | None) -> SamplingParams:
        """Returns the given parameters, validated, or the checkpoint's defaults."""
        return self.sampling_params() if params is None else validated(params)

    def _each_params(
        self, params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
    ) -> Sequence[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [self._checked(params)] * num_prompts
        if len(params) != num_prompts:
            raise InvalidArgumentError(f"`params` must be one for each of {num_prompts} prompts, got {len(params)}")
        return [validated(one) for one in params]

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


def train(
    config: str | os.PathLike[str] | RunConfig | None = None,
    *,
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    tokenizer: BaseTokenizer | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    from_step: int | None = None,
    overrides: Sequence[Override] = (),
    callbacks: Sequence[Callback] | None = None,
    **settings: Any,
) -> Checkpoint:
    """Trains a model or resumes a run, and returns the last checkpoint.

    Args:
        config: A TOML file or settings; by default the default settings. `LLM_SECTION__FIELD` variables and the other
            arguments override it.
        data: Files, directories or globs of UTF-8 text.
        tokenizer: A tokenizer, or a tokenizer's directory; by default, one is trained on the training text.
        out: The new directory of the run.
        resume: A run to resume with its own settings. A larger `max_steps` also stretches the learning rate schedule,
            so the result differs from a run planned with that length from the start.
        overwrite: Whether to replace a run in `out`; only what that run wrote is removed.
        from_step: With `resume`, the step of an older checkpoint to go on from; newer ones are removed.
        overrides: Settings as `section.field=value`, as on the command line, or as pairs of name and value.
        callbacks: Callbacks that replace the progress bar, the log and the loss curve.
        **settings: Settings by the last part of their name, such as `max_steps=1000` or `learning_rate=3e-4`.

    Returns:
        The last checkpoint; `str` and `os.fspath` give its directory.

    Raises:
        ConfigError: Settings are unknown or contradictory.
        DataError: The text is missing or too short.
        TrainingError: A loss or gradient is not finite.

    Example:
        >>> from llm import train
        >>> base = train("tiny.toml", data="corpus/*.txt", out="runs/base")  # doctest: +SKIP
        >>> base = train(resume="runs/base", max_steps=20_000)  # doctest: +SKIP
    """
    changes: list[Override] = [*overrides, *_named(settings)]
    if data is not None:
        changes.append(("data.paths", _paths(data)))
    if isinstance(tokenizer, str | os.PathLike):
        changes.append(("tokenizer.path", os.fspath(tokenizer)))
        tokenizer = None
    if resume is not None:
        if out is not None or tokenizer is not None or overwrite or isinstance(config, RunConfig):
            raise ConfigError(
                "`resume` uses the settings of the run: `out`, `overwrite`, `tokenizer` and a `RunConfig` can't be "
                "combined with it"
            )
        return resume_run(resume, file=config, overrides=changes, callbacks=callbacks, from_step=from_step)
    if out is None:
        raise ConfigError("`out` is missing\nhint: pass a new directory for the run, or `resume`")
    if from_step is not None:
        raise ConfigError("`from_step` goes on from a checkpoint of a run\nhint: add `resume`")
    return launch(config, out, overrides=changes, tokenizer=tokenizer, callbacks=callbacks, overwrite=overwrite)


def _named(settings: dict[str, Any]) -> list[Override]:
    return [(full_name_or_error(name), value) for name, value in settings.items() if value is not None]


def _paths(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    return [os.fspath(path) for path in ([given] if isinstance(given, str | os.PathLike) else given)]


def evaluate(
    path: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    engine: EngineConfig | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Report:
    """Evaluates a checkpoint on files: perplexity of texts, accuracy on JSONL files of samples.

    Args:
        path: A `Checkpoint`, or the directory of a checkpoint or run.
        data: Files; names that end in `.jsonl` hold samples, all others are texts in UTF-8.
        out: File for the report as JSON, every sample included.
        dtype: `auto` (the checkpoint's own), `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu` or `cuda[:N]`.
        engine: Engine limits.
        progress: Whether to show a progress bar; None shows one on a terminal.
        **settings: Fields of `EvaluationConfig`, such as `shots=3`.

    Raises:
        ConfigError: A setting is unknown or out of range.
        CheckpointError: Files of the checkpoint are missing, damaged or contradictory.
        DataError: A file of data can't be read, or a line is no sample.

    Example:
        >>> from llm import evaluate
        >>> report = evaluate("runs/demo", "questions.jsonl", shots=3)  # doctest: +SKIP
        >>> report.results[0].metrics["accuracy"].value  # doctest: +SKIP
    """
    files = [data] if isinstance(data, str | os.PathLike) else list(data)
    config = evaluation_config(**settings)
    session = Session(load_engine(path, dtype=dtype, device=device, config=engine))
    results = evaluate_files(session, files, config, progress=progress)
    report = Report(model=os.fspath(path), settings=config, results=results)
    if out is not None:
        write_bytes(Path(out), report.to_json())
    return report


def serve(path: str | os.PathLike[str], **settings: Any) -> None:
    """Serves a checkpoint or run over OpenAI-compatible endpoints until SIGINT or SIGTERM.

    Args:
        path: A `Checkpoint`, or the directory of a checkpoint or run.
        **settings: Fields of `llm.serving.ServerConfig` and of its `engine`, such as `port=8000` and
            `max_model_len=512`.

    Raises:
        ConfigError: A setting is unknown or out of range.
        ServerError: The port is in use, or the address can't be bound.
        CheckpointError: Files are missing, damaged or contradictory.
    """
    from llm.serving import serve as serve_path

    serve_path(path, server_config(**settings))
