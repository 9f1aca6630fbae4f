"""Sessions, through which `LLM` and the server use an engine: prompts in, one stream of deltas out."""

from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from llm.errors import LLMError, QueueFullError
from llm.inference.answer_format import AnswerFormat, answer_format
from llm.inference.chat_prompt import answer_setup, chat_ids, kept_special_ids
from llm.inference.engine import Engine
from llm.inference.outputs import ChoiceDelta, Delta
from llm.inference.prompt import Prompt
from llm.inference.splitting import DeltaSplitter
from llm.settings.sampling import SamplingParams
from llm.tokenization import BaseTokenizer, ChatOptions, frame_of
from llm.tokenization.settings import TokenizerSettings


class Stream:
    """Carries the deltas of one admission from the engine to their consumer.

    The engine's thread appends and one other thread takes; a `deque` needs no lock for that.
    """

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.request_ids: list[int] = []
        self._splitter = DeltaSplitter(prompts) if DeltaSplitter.is_needed(prompts) else None
        # Admission rejects an `n` of 0; until then, the stream is open so that `take` can raise the error.
        self.num_running = sum(max(prompt.params.n, 1) for prompt in prompts)
        self.error: LLMError | None = None
        self._deltas: deque[ChoiceDelta] = deque()

    @property
    def is_open(self) -> bool:
        """Returns whether `take` has or will have deltas or an error."""
        return bool(self._deltas) or self.num_running > 0

    @property
    def is_ready(self) -> bool:
        """Returns whether `take` has deltas or an error now."""
        return bool(self._deltas) or self.error is not None

    def put(self, choice: int, event: Delta | LLMError) -> bool:
        """Appends a delta or records an error, and returns whether it was the last event of the answer."""
        if isinstance(event, LLMError):
            self.error = event
            return True
        self._deltas.append((choice, event))
        if event.finish_reason is None:
            return False
        self.num_running -= 1
        return True

    def take(self) -> list[ChoiceDelta]:
        """Returns all deltas since the last call, in order.

        Raises:
            LLMError: The request was rejected or an answer failed; raised once all deltas before the error are taken.
        """
        pop = self._deltas.popleft
        deltas = [pop() for _ in range(len(self._deltas))]
        if not deltas and self.error is not None:
            raise self.error
        return deltas if self._splitter is None else [self._splitter.split(delta) for delta in deltas]


class Session:
    """Converts texts and conversations to prompts, admits prompts to an engine and routes deltas to streams.

    Any thread may create prompts; only the thread that owns the engine may call `admit`, `step`, `abort` and `run`.

    Args:
        engine: The engine, reserved for this session while a stream is open.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.default_max_tokens: int | None = None  # for chats without `max_tokens`; None fills the context
        self.tool_parser = "auto"
        self.reasoning_parser = "auto"
        self._answer_format: tuple[TokenizerSettings, AnswerFormat] | None = None
        self._routes: dict[int, tuple[Stream, int]] = {}

    @property
    def tokenizer(self) -> BaseTokenizer:
        """The model's tokenizer."""
        return self.engine.tokenizer

    @property
    def answer_format(self) -> AnswerFormat:
        """How the model writes reasoning and calls of functions.

        Raises:
            ConfigError: The name of a parser is unknown.
            ChatTemplateError: The chat template is not valid.
        """
        settings = self.tokenizer.settings
        if self._answer_format is None or self._answer_format[0] is not settings:
            self._answer_format = (settings, answer_format(self.tokenizer, self.tool_parser, self.reasoning_parser))
        return self._answer_format[1]

    def sampling_params(self, **values: Any) -> SamplingParams:
        """Returns `SamplingParams` of `values`, with the checkpoint's defaults for missing values and None.

        Raises:
            InvalidArgumentError: Values contradict each other. Admission checks the range of each.
        """
        given = {name: value for name, value in values.items() if value is not None}
        return SamplingParams(**{**self.engine.generation_defaults, **given})

    def room(self, token_ids: Sequence[int]) -> int:
        """Returns how many new tokens fit in the context after a prompt; negative if the prompt alone is too long."""
        return self.engine.max_model_len - len(token_ids)

    def encode(self, text: str, *, add_special_tokens: bool = True, allow_special: bool = False) -> list[int]:
        """Returns the token ids of a text.

        Args:
            text: Any Unicode text.
            add_special_tokens: Whether to add the special tokens that the tokenizer adds, such as BOS.
            allow_special: Whether the text of a special token becomes that token.
        """
        token_ids = self.tokenizer.encode(text, allow_special=True) if allow_special else self.tokenizer.encode(text)
        return self._framed(token_ids) if add_special_tokens else token_ids

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams,
        *,
        priority: int = 0,
        add_special_tokens: bool = False,
        options: ChatOptions | None = None,
    ) -> Prompt:
        """Returns the prompt for the next turn of a conversation; the answer also stops at the template's end of turn.

        Args:
            messages: The conversation.
            params: Sampling parameters.
            priority: Lower values run first.
            add_special_tokens: Whether to add BOS even if the template writes none; BOS is never added twice.
            options: Inputs of the template besides the messages, and where the prompt ends.

        Raises:
            ChatTemplateError: The checkpoint has no chat template, or the template rejects the messages.
            InvalidArgumentError: The model can't be told about tools.
        """
        stop = tuple(dict.fromkeys((*params.stop, *self.tokenizer.chat_stop)))
        params = msgspec.structs.replace(params, stop=stop)
        options = options or {}
        form = self.answer_format
        token_ids = chat_ids(self.tokenizer, messages, options, form)
        answer = answer_setup(self.tokenizer, token_ids, options, form)
        token_ids = self._framed(token_ids) if add_special_tokens else token_ids
        if params.max_tokens is None and self.default_max_tokens is not None:
            max_tokens = max(1, min(self.default_max_tokens, self.room(token_ids)))
            params = msgspec.structs.replace(params, max_tokens=max_tokens)
        return Prompt(
            token_ids=token_ids,
            params=params,
            priority=priority,
            answer=answer,
            kept_special_ids=kept_special_ids(answer, form),
        )

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Returns the ids of a whole conversation, as training sees it: the assistant's next turn is not opened.

        Raises:
            ChatTemplateError: The checkpoint has no chat template, or the template rejects the messages.
        """
        return chat_ids(self.tokenizer, messages, {"add_generation_prompt": False}, self.answer_format)

    def adapted(self, prompts: Sequence[Prompt], model: str) -> list[Prompt]:
        """Returns prompts that the adapter named `model` answers, if there is one, otherwise the model itself."""
        name = model if model in self.engine.adapters else None
        return [msgspec.structs.replace(prompt, adapter=name) for prompt in prompts]

    def _framed(self, token_ids: list[int]) -> list[int]:
        """Returns the ids with the special tokens that the tokenizer adds, without duplicating present ones."""
        before, after = frame_of(self.tokenizer)
        before = [] if token_ids[: len(before)] == before else before
        after = [] if token_ids[len(token_ids) - len(after) :] == after else after
        return [*before, *token_ids, *after]

    def admit(self, prompts: Iterable[Prompt], stream: Stream) -> None:
        """Queues all prompts or, after an error, none; their deltas arrive on `stream`.

        Raises:
            ContextLengthError: A prompt and its new tokens exceed the context.
            CapacityError: A request can never fit the cache.
            QueueFullError: Too many requests or tokens are waiting.
            InvalidArgumentError: A prompt is empty, contains an unknown token id, or lacks its compiled grammar.
            ConfigError: A sampling value is out of range.
        """
        already = len(stream.request_ids)
        try:
            for prompt in prompts:
                ids = self.engine.add_choices(
                    prompt.token_ids,
                    prompt.params,
                    priority=prompt.priority,
                    kept_special_ids=prompt.kept_special_ids,
                    grammar=prompt.grammar,
                    adapter=prompt.adapter,
                )
                self._routes.update(
                    (request_id, (stream, len(stream.request_ids) + at)) for at, request_id in enumerate(ids)
                )
                stream.request_ids += ids
        except LLMError:
            self._drop(stream.request_ids[already:])
            raise

    def step(self) -> Iterable[Stream]:
        """Runs one step of the engine and returns the streams that got deltas or errors."""
        touched: dict[Stream, None] = {}
        for request_id, event in self.engine.step():
            stream, choice = self._routes[request_id]
            if stream.put(choice, event):
                del self._routes[request_id]
            touched[stream] = None
        return touched

    def abort(self, stream: Stream) -> None:
        """Aborts the stream's running requests and frees their blocks."""
        self._drop(stream.request_ids)

    def fail(self, error: LLMError) -> Iterable[Stream]:
        """Ends every open stream with an error and returns those streams."""
        streams = dict.fromkeys(stream for stream, _ in self._routes.values())
        self._routes.clear()
        for stream in streams:
            stream.error = error
        return streams

    def run(self, prompts: Sequence[Prompt]) -> Generator[ChoiceDelta, None, None]:
        """Runs prompts to their end on this thread and yields deltas; prompts wait while the engine's queue is full.

        Each step serves all streams of the session, so several iterators may take turns. Closing an iterator frees its
        blocks.

        Raises:
            LLMError: The same errors as in `admit`, or the model failed; an error in one answer ends all of them.
        """
        stream = Stream(prompts)
        try:
            for prompt in map(self._compiled, prompts):
                while not self._admitted(prompt, stream):
                    self.step()
                    yield from stream.take()
            while stream.is_open:
                if not stream.is_ready:
                    self.step()
                yield from stream.take()
        finally:
            self.abort(stream)

    def _compiled(self, prompt: Prompt) -> Prompt:
        """Returns the prompt with its compiled grammar."""
        if prompt.grammar is not None or prompt.params.structured_outputs is None:
            return prompt
        return msgspec.structs.replace(prompt, grammar=self.engine.compile_grammar(prompt.params))

    def _drop(self, request_ids: Iterable[int]) -> None:
        for request_id in request_ids:
            if self._routes.pop(request_id, None) is not None:
                self.engine.abort(request_id)

    def _admitted(self, prompt: Prompt, stream: Stream) -> bool:
        try:
            self.admit([prompt], stream)
        except QueueFullError:
            return False
        return True
