"""Binding of the Rust core: signatures, errors and cost."""

import os
from collections.abc import Callable, Sequence
from typing import Final, Literal, Self, final

import numpy as np
from numpy.typing import NDArray

from llm.settings.engine import EngineConfig
from llm.settings.sampling import SamplingParams

__all__ = [
    "ANSWER_FORMATS",
    "FINISH_REASONS",
    "PACKED_SCHEMES",
    "PACKED_STRIP_ROWS",
    "AdamW",
    "AnswerParser",
    "BPETrainer",
    "CpuModel",
    "DocumentCutter",
    "EncodePlan",
    "EngineCore",
    "Grammar",
    "RequestParams",
    "SampledTokens",
    "SimulatedLoad",
    "StepOutputs",
    "StepPlan",
    "TextBlock",
    "TokenStream",
    "TokenTable",
    "Tokenizer",
    "TrainingAttention",
    "__version__",
    "crc32",
    "gelu",
    "instruction_sets",
    "label_logprobs",
    "pack_rows",
    "packed_bytes",
    "philox_uniform",
    "row_norm",
    "row_norm_gradients",
    "sample",
    "simulate_scheduler",
    "token_logprobs",
    "unpack_rows",
]
__version__: str
_Ids = NDArray[np.uint32]
_Longs = NDArray[np.int64]
_Logits = NDArray[np.float32] | NDArray[np.uint16] | NDArray[np.int16]
FINISH_REASONS: Final[tuple[None, Literal["stop"], Literal["length"], Literal["error"], Literal["grammar"]]]
# The formats of calls: a format's name and the texts that mark its calls.
ANSWER_FORMATS: Final[tuple[tuple[str, list[str]], ...]]
_PartKind = Literal["text", "reasoning", "call", "arguments"]

@final
class AnswerParser:
    """Splits one answer into reasoning, text and calls of functions as its text arrives. For one thread at a time.

    White space next to reasoning and calls belongs to no part. What turns out to be no call is text.
    """

    def __new__(
        cls,
        format: str | None,
        reasoning: tuple[str, str] | None = None,
        starts_in_reasoning: bool = False,
        tools: dict[str, dict[str, str]] | None = None,
    ) -> AnswerParser:
        """Starts at the beginning of an answer.

        `format` is in `ANSWER_FORMATS`; None leaves calls in the text. `reasoning` holds the texts around reasoning;
        `tools` holds the types of each function's parameters. A format without markers knows only these functions.

        Raises:
            InvalidArgumentError: The format is unknown or a marker is empty.
        """

    @property
    def is_reasoning(self) -> bool: ...
    def push(self, text: str) -> list[tuple[_PartKind, int | None, str]]:
        """Takes more text and returns the parts that are now certain: kind, index of the call and text.

        Kind `call` begins a call, with the function's name as text; `arguments` continues the JSON of its arguments.
        """

    def finish(self) -> list[tuple[_PartKind, int | None, str]]:
        """Ends the answer and returns what was held back; an unfinished call keeps its arguments as far as they go."""

# --- sampling and engine -----------------------------------------------------------------------------------------

@final
class RequestParams:
    """Settings of one request, read by field name from a `llm.SamplingParams` that has a seed.

    `choice_index` selects one of the random streams of a seed. `grammar` comes from the engine's `compile_grammar`. The
    text of `kept_special_ids` is kept even with `skip_special_tokens`.

    Raises:
        InvalidArgumentError: A field has the wrong type or is out of range.
    """

    def __new__(
        cls,
        params: SamplingParams,
        *,
        choice_index: int = 0,
        grammar: Grammar | None = None,
        kept_special_ids: Sequence[int] | None = None,
    ) -> Self: ...

@final
class Grammar:
    """A grammar compiled for one engine's vocabulary."""

    def accepts(self, text: bytes) -> bool:
        """Returns whether the whole text follows the grammar."""

@final
class SampledTokens:
    """One token per row, in new arrays; `logprobs` is NaN, `ranks` 0 and `top_logprobs` None where not asked for."""

    @property
    def token_ids(self) -> _Ids: ...  # (B,)
    @property
    def logprobs(self) -> NDArray[np.float32]: ...  # (B,)
    @property
    def ranks(self) -> _Ids: ...  # (B,): 1 for the likeliest; among equals the lower id comes first
    @property
    def top_logprobs(self) -> list[tuple[list[int], list[float]] | None]: ...  # B entries: ids, logprobs

def sample(
    logits: _Logits,
    params: Sequence[RequestParams],
    prompt_ids: Sequence[_Ids],
    output_ids: Sequence[_Ids],
    *,
    vocab_size: int | None = None,
    pad_id: int | None = None,
    eos_ids: Sequence[int] = ...,
) -> SampledTokens:
    """Samples one token per row, exactly as the engine would for a request with this history.

    `logits` is (B, V), C-contiguous, and modified in place; 16-bit integers hold the bits of bfloat16
    (`tensor.view(torch.int16).numpy()`). `pad_id` and ids from `vocab_size` (default: V) on are never drawn. Rows run
    in parallel without the GIL. Cost per row: one pass over V, two for log-probabilities or draws without top-k.

    Raises:
        InvalidArgumentError: The dtype or layout is wrong, a length differs from B, or a row has no finite maximum.
    """

def token_logprobs(
    logits: _Logits, token_ids: _Ids, n: int = 0, *, vocab_size: int | None = None, pad_id: int | None = None
) -> SampledTokens:
    """Scores one given token per row (B, V): its log-probability, its rank, and the n likeliest tokens.

    Rows at the positions of a prompt, with the tokens that follow there, yield the log-probabilities of the prompt.
    `logits` as for `sample`. Cost per row: O(V), in parallel with the GIL released.

    Raises:
        InvalidArgumentError: The dtype, layout or number of ids is wrong, an id is not below V, or a row is not finite.
    """

def philox_uniform(seed: int, output_idx: int, *, choice_index: int = 0, draw_idx: int = 0) -> float:
    """Returns the number in [0, 1) that a request draws for output token `output_idx`, from Philox4x32-10."""

@final
class StepPlan:
    """Inputs of one forward pass: T tokens of R requests, flattened, with S logits rows and C block copies."""
    @property
    def token_ids(self) -> _Longs: ...  # (T,)
    @property
    def positions(self) -> _Longs: ...  # (T,)
    @property
    def slot_mapping(self) -> _Longs: ...  # (T,): block * block_size + offset
    @property
    def query_start(self) -> NDArray[np.int32]: ...  # (R + 1,)
    @property
    def seq_lens(self) -> NDArray[np.int32]: ...  # (R,): cached tokens after this step
    @property
    def block_tables(self) -> NDArray[np.int32]: ...  # (R, largest number of blocks), padded with 0
    @property
    def logits_indices(self) -> _Longs: ...  # (S,): into T; repeated if choices share a prompt
    @property
    def request_ids(self) -> NDArray[np.uint64]: ...  # (R,)
    @property
    def adapters(self) -> NDArray[np.uint16]: ...  # (R,): 0 for none
    @property
    def block_copies(self) -> _Longs: ...  # (C, 2): source and target, to copy before the pass

@final
class StepOutputs:
    """Results of a step: N entries for requests that got a token or failed, several for accepted draft tokens."""
    @property
    def request_ids(self) -> NDArray[np.uint64]: ...  # (N,)
    @property
    def token_ids(self) -> _Ids: ...  # (N,): 2**32 - 1 if the request ended without one
    @property
    def texts(self) -> list[str]: ...  # N deltas, often empty
    @property
    def finish_reasons(self) -> NDArray[np.uint8]: ...  # (N,): indices into FINISH_REASONS
    @property
    def logprobs(self) -> NDArray[np.float32]: ...  # (N,): log-softmax of the raw logits; NaN if not asked for
    @property
    def ranks(self) -> _Ids: ...  # (N,): 1 for the likeliest token; 0 if not asked for
    @property
    def top_logprobs(self) -> list[tuple[list[int], list[float]] | None]: ...  # N entries: ids, logprobs
    @property
    def prompt_logprobs(self) -> list[tuple[int, list[tuple[int, float, int, list[tuple[int, float]]]]]]:
        """Request id with (token id, log-probability, rank, likeliest tokens) of each prompt token but the first."""
    @property
    def stop_strings(self) -> list[tuple[int, int]]: ...  # request id and index of the stop string that ended it
    @property
    def cached_tokens(self) -> list[tuple[int, int]]: ...  # request id and prompt tokens from the prefix cache, if any
    @property
    def errors(self) -> list[tuple[int, str]]: ...  # request id and message of each failed request

@final
class EngineCore:
    """Scheduler, sampler and detokenizer around a model that the caller runs.

    Any thread may call any method; concurrent calls wait with the GIL released.

    Raises:
        InvalidArgumentError: The table is empty, an id is outside it, or a limit is out of range.
    """

    def __new__(
        cls,
        config: EngineConfig,
        *,
        num_blocks: int,
        token_bytes: Sequence[bytes | None],
        special_ids: Sequence[int],
        eos_ids: Sequence[int],
        pad_id: int | None,
        tokenizer: Tokenizer | None = None,
    ) -> Self:
        """Reads limits from `config`, with `max_model_len` and `max_batch_tokens`; `tokenizer` cuts forced text."""

    def add_choices(
        self,
        request_id: int,
        prompt_ids: _Ids,
        params: RequestParams,
        *,
        priority: int = 0,
        num_choices: int = 1,
        adapter: int = 0,
    ) -> None:
        """Queues a request; lower priorities run first. The id may be reused once the request has finished.

        Several choices get consecutive ids and `choice_index`, and share their prompt. `adapter`: a number, 0 for none.

        Raises:
            InvalidArgumentError: The prompt is empty, an id is outside the vocabulary, or a request id is in use.
            ContextLengthError: Prompt and new tokens exceed the context.
            CapacityError: The request can never fit the cache.
            QueueFullError: Too many requests or tokens wait.
        """

    def compile_grammar(self, kind: str, source: str | Sequence[str], *, is_compact: bool = False) -> Grammar:
        """Compiles a grammar, or returns it from a cache of the 128 used last. Does not wait for a step that runs.

        `kind` is json (the text of a JSON schema), regex, choice (a list of strings) or grammar (Lark). `is_compact`
        forbids white space between the tokens of JSON.

        Raises:
            InvalidArgumentError: The grammar is invalid, has a part that would not be enforced, is too large or takes
                longer than a second; the message names the place.
            QueueFullError: Too many grammars are being compiled.
        """

    def abort(self, request_id: int) -> bool:
        """Ends a request in any state, even during a step, and frees its blocks; returns False if it is unknown."""

    def schedule(self) -> StepPlan | None:
        """Plans the next step; returns None if there is nothing to run.

        Progress counts at `update`; planning again without one drops the plan, so a failed step is retried or aborted.
        """

    def fail_step(self) -> list[int]:
        """Ends every request of the plan in flight and returns their ids, including choices waiting for a prompt."""

    def update(self, logits: NDArray[np.float32]) -> StepOutputs:
        """Takes the last plan's logits: samples, detokenizes, and ends finished requests.

        `logits` is (S, V), C-contiguous, V at least the number of ids, and modified in place. Every plan needs the
        call, even if S is 0. A row that is not finite ends only its own request, as an error.

        Raises:
            InvalidArgumentError: No plan is in flight, or shape or dtype is wrong; the plan then stays in flight.
        """

    def request_tokens(self, request_id: int, start: int) -> tuple[_Ids, int] | None:
        """Its tokens from `start` on, and how many may follow; None if unknown, finished, or waiting for a prompt."""

    def set_drafts(self, request_id: int, drafts: list[int]) -> None:
        """Sets draft tokens for a request's next step to verify; drafts past the request's limit are dropped.

        Raises:
            UnknownRequestError: `request_tokens` would return None.
            InvalidArgumentError: An id is outside the vocabulary.
        """

    def take_block_events(self) -> list[tuple[list[int], int | None, list[int], int] | list[int]]:
        """What changed in the prefix cache since the last call, in order; the first call starts the record.

        Stored blocks: their hashes, their predecessor's, their tokens, their adapter. Removed blocks: their hashes.
        """

    def has_unfinished(self) -> bool: ...
    def stats(self) -> dict[str, int]:
        """Counts: num_running, num_waiting, waiting_tokens, blocks_total, blocks_free, blocks_cached; and totals.

        Totals: num_preemptions, num_steps, tokens_scheduled, prefix_query_tokens, prefix_hit_tokens, blocks_copied,
        drafts_computed, drafts_accepted, grammars_compiled.
        """

    def check_integrity(self) -> None:
        """Checks every invariant of queues and blocks; raises InternalError, which names a broken one."""

@final
class SimulatedLoad:
    """Requests for `simulate_scheduler`, described by sizes; `len` gives their number."""

    @staticmethod
    def synthetic(
        *,
        num_requests: int,
        mean_prompt_tokens: float,
        mean_output_tokens: float,
        max_tokens: int,
        rate_per_s: float | None = None,
        num_prefixes: int = 0,
        prefix_tokens: int = 0,
        seed: int = 0,
    ) -> SimulatedLoad:
        """Creates requests with geometric lengths and Poisson arrivals, or all at once; prompts begin with a prefix."""

    @staticmethod
    def trace(
        arrival_s: NDArray[np.float64],
        prompt_tokens: _Ids,
        output_tokens: _Ids,
        prefix_ids: NDArray[np.uint64],
        prefix_tokens: _Ids,
    ) -> SimulatedLoad:
        """Creates requests from columns (N,), which must agree (InvalidArgumentError); 0 `prefix_tokens`: no prefix."""

    def __len__(self) -> int: ...

def simulate_scheduler(
    load: SimulatedLoad,
    config: EngineConfig,
    *,
    num_blocks: int,
    step_s: float = 0.0,
    token_s: float = 0.0,
    progress: Callable[[int], object] | None = None,
) -> dict[str, float]:
    """Runs a load through a scheduler without a model, with the GIL released, and returns what it cost.

    On the simulated clock a step takes `step_s`, plus `token_s` per token. `progress(finished)` is called ten times a
    second; an exception from it ends the simulation, as does Ctrl-C.

    Raises:
        InvalidArgumentError: A limit, time or size is out of range.
    """

# ---- tokenizer ----

@final
class Tokenizer:
    """Byte-level BPE. Immutable and safe to share between threads; every method releases the GIL while it works.

    Raises:
        InvalidArgumentError: A text holds a lone surrogate, or an id is outside the vocabulary.
        TokenizerError: A custom pattern backtracks too much on a text.
    """

    @staticmethod
    def from_json(text: str) -> Tokenizer:
        """Reads Hugging Face's `tokenizer.json`. Cost: O(bytes of all tokens), about 0.2 s for 100,000 tokens.

        Raises:
            TokenizerError: The text is no such file, or names a component that is not supported.
        """

    @staticmethod
    def from_ranks(ranks: Sequence[bytes], special_tokens: dict[str, int], pattern: str) -> Tokenizer:
        """Builds a tokenizer from tokens in order of rank, as tiktoken stores them; the rank is the id.

        An empty entry is an unused rank; tokens that merges never produce match whole pieces. `pattern`: name or regex.

        Raises:
            InvalidArgumentError: The pattern has an unknown name.
            TokenizerError: A single byte is missing, two tokens are equal, a special token's id or text is taken, or
                the regular expression does not compile.
        """

    def to_json(self) -> str:
        """Returns the tokenizer as Hugging Face's `tokenizer.json`.

        Raises:
            TokenizerError: A special token has the text of an ordinary token.
        """

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Encodes `text`. Cost: O(n log n) in the longest piece, O(n) in the text; one Python int per id."""

    def encode_to_numpy(self, text: str, allow_special: bool = False) -> _Ids:
        """Encodes `text` into an array (T,), without a Python object per id."""

    def encode_planned(self, text: str, plan: EncodePlan) -> _Ids:
        """Encodes `text` into an array (T,) with the options of `plan`.

        Raises:
            InvalidArgumentError: `text` holds a disallowed special token.
        """

    def offsets(self, text: str, plan: EncodePlan) -> tuple[_Longs, _Longs]:
        """Start and end in `text` of each id of `plan` before truncation, in bytes and in code points, (T, 2) each.

        If the tokenizer normalizes text, offsets refer to the text before normalization. Cost: that of encoding.
        """

    def encode_batch(
        self, texts: Sequence[str], plan: EncodePlan | None = None, num_threads: int | None = None
    ) -> list[list[int]]:
        """Encodes each text on `num_threads` threads or all cores; then makes one Python int per id, with the GIL.

        Raises:
            InvalidArgumentError: A text holds a disallowed special token, or `num_threads` is not from 1 to 1024.
        """

    def encode_batch_flat(
        self, texts: Sequence[str], plan: EncodePlan | None = None, num_threads: int | None = None
    ) -> tuple[_Ids, _Longs]:
        """Encodes as `encode_batch`; returns all ids (T,), and the index of each text's first id, then T (B + 1,)."""

    def encode_blocks(
        self, blocks: Sequence[TextBlock], end: int | None, wide: bool
    ) -> tuple[NDArray[np.uint16] | _Ids, _Longs]:
        """Encodes the pieces of `blocks` on all cores with the GIL released, special tokens as plain text.

        `end` is the id after each document, if any; ids are uint32 if `wide` is set, else uint16. Returns all ids (T,),
        and the index after each document that ends (D,).

        Raises:
            InvalidArgumentError: An id doesn't fit into 16 bits.
        """

    def decode_bytes(self, ids: Sequence[int] | _Ids, skip_special_tokens: bool = False) -> bytes:
        """Decodes `ids` to bytes. Cost: O(bytes); a uint32 array is read without a Python object per id."""

    def decode(self, ids: Sequence[int] | _Ids, skip_special_tokens: bool = False) -> str:
        """Decodes `ids` to text; bytes that are not UTF-8 become U+FFFD."""

    def decode_batch(
        self, batch: Sequence[Sequence[int] | _Ids], skip_special_tokens: bool = False, num_threads: int | None = None
    ) -> list[str]:
        """Decodes each row as `decode` does, on `num_threads` threads or all cores; errors name the row."""

    def pieces(self, text: str) -> list[str]:
        """Splits `text` by the pattern, special tokens as text; merges stay within a piece. Slow, for inspection."""

    def token_bytes(self) -> list[bytes | None]:
        """Returns the bytes of each id, None for an unused id. Cost: one bytes object per id."""

    def token_table(self) -> TokenTable:
        """Returns the bytes of each id for streams and offsets. Cost: a copy, without a Python object per id."""
    @property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens and their ids, in order of id."""
    @property
    def template(self) -> tuple[list[int], list[int]] | None:
        """Ids that special tokens add before and after a text; None if the tokenizer adds none."""
    @property
    def cuts_at_line_ends(self) -> bool:
        """Whether no token crosses a line end between lines that begin and end with neither a space nor `/`."""
    @property
    def vocab_size(self) -> int:
        """The highest id plus one."""
    @property
    def pattern(self) -> str:
        """Name of the pattern that splits text into pieces, or a custom pattern's regular expression."""

@final
class TextBlock:
    """Pieces of consecutive documents, as text in UTF-8. Immutable."""

    def __len__(self) -> int:
        """Number of pieces."""
    @property
    def num_documents(self) -> int:
        """Number of documents that end in the block."""
    @property
    def num_bytes(self) -> int:
        """Bytes of all pieces."""

    def pieces(self) -> list[tuple[str, bool]]:
        """Returns the text of each piece, and whether its document ends with it. Cost: one text per piece."""

    def slice(self, start: int, stop: int) -> TextBlock:
        """Returns what lies between two bytes, counted over all pieces.

        A border within a character moves to its beginning; a document that is cut ends there. Cost: a copy.
        """

@final
class DocumentCutter:
    """Cuts a stream of text into documents at a separator, and long documents into pieces that no token spans.

    The line break after a separator belongs to the separator. Documents without a visible character are left out. Each
    call returns the pieces that are complete, works with the GIL released, and costs O(bytes).
    """

    def __new__(
        cls, *, separator: str | None, at_line_ends: bool, field: str, piece_bytes: int, max_piece_bytes: int
    ) -> DocumentCutter:
        """Creates a cutter at the beginning of a document.

        `separator` is the text between two documents, if any; `field` holds the text of lines of JSON. From
        `piece_bytes` on, a document is cut at a line end if `at_line_ends` is set, from `max_piece_bytes` on, a space.

        Raises:
            InvalidArgumentError: A length is not positive.
        """

    @property
    def num_blank(self) -> int:
        """Number of documents left out so far because they hold nothing but white space."""

    def feed(self, text: bytes, ends: bool) -> TextBlock:
        """Adds UTF-8, which may end within a character; `ends` says that a document ends with it.

        Raises:
            DataError: The bytes are no UTF-8; names value and offset of the first that isn't.
        """

    def feed_text(self, text: str, ends: bool) -> TextBlock:
        """Adds a text; `ends` says that a document ends with it.

        Raises:
            InvalidArgumentError: The text contains a lone surrogate.
        """

    def feed_lines(self, lines: bytes, is_last: bool, other: Callable[[int, bytes], str]) -> TextBlock:
        """Adds the field of each line of JSON, a document a line; `is_last` says that the last line ends with `lines`.

        `other` gets any other line with its number from 1, and returns its text or raises. Blank lines are skipped.
        """

    def feed_rows(self, values: NDArray[np.uint8], offsets: _Longs) -> TextBlock:
        """Adds rows of text, a document a row: row `i` is `values[offsets[i]:offsets[i + 1]]`.

        Raises:
            DataError: A row is no UTF-8.
        """

@final
class EncodePlan:
    """`llm.tokenization.EncodeOptions` resolved for one tokenizer. Immutable and safe to share between threads.

    Raises:
        InvalidArgumentError: `max_length` is too small for the ids around a text, or a disallowed text is empty.
    """

    def __new__(
        cls,
        *,
        allowed: dict[str, int],
        allow_all: bool,
        disallowed: Sequence[str],
        template: tuple[Sequence[int], Sequence[int]],
        max_length: int | None,
        truncate_left: bool,
    ) -> EncodePlan: ...
    def check(self, text: str) -> None:
        """Checks a text for disallowed special tokens.

        Raises:
            InvalidArgumentError: The text holds one; the message names the token and its place.
        """

    def split(self, text: str) -> list[str | int]:
        """Splits `text` at allowed special tokens into their ids and the texts between them."""

    def kept(self, num_ids: int) -> tuple[int, int]:
        """Returns start and stop of the ids that truncation keeps of `num_ids`."""
    @property
    def template(self) -> tuple[list[int], list[int]]:
        """The ids before and after each text."""

@final
class TokenTable:
    """The bytes of each id, immutable and safe to share; raises InvalidArgumentError for a special id outside it."""

    def __new__(cls, token_bytes: Sequence[bytes | None], special_ids: Sequence[int]) -> TokenTable: ...
    def __len__(self) -> int: ...
    def bytes(self, token_id: int) -> bytes | None:
        """Returns the bytes that an id adds to a text; None for an unused or unknown id."""

    def stream(self, *, skip_special_tokens: bool = False) -> TokenStream:
        """Starts an empty text to push ids to. Cost: independent of the table's size."""

    def offsets(self, ids: Sequence[int] | _Ids, text: str) -> tuple[_Longs, _Longs]:
        """Start and end of each id in `text`, in bytes and in code points, (T, 2) each. Cost: O(bytes).

        A space that the tokenizer puts before every text counts as nothing.

        Raises:
            InvalidArgumentError: The tokens' bytes are not the text's.
        """

@final
class TokenStream:
    """Text of ids that arrive one by one. For one thread at a time."""

    def push(self, token_id: int) -> str:
        """Appends an id and returns the characters that became certain, often none; bytes of no character are U+FFFD.

        Raises:
            InvalidArgumentError: The id has no bytes; the stream stays as it was.
        """

    def finish(self) -> str:
        """Returns the rest, with an incomplete character as U+FFFD."""

@final
class CpuModel:
    """A model on the CPU kernels. Runs one step at a time; concurrent calls wait, with the GIL released."""

    def __new__(
        cls, weights: object, keys: object, values: object, *, num_threads: int, instruction_set: str | None = None
    ) -> CpuModel:
        """Keeps PyTorch's tensors alive, whose memory it reads and writes; none may change its size or place.

        `weights` is `runners.cpu_weights.kernel_weights`; `keys` and `values` hold `[blocks, block_size, kv_heads,
        head_dim]` for each layer, or `layers.cached`'s int8; None: the best `instruction_set`.

        Raises:
            InvalidArgumentError: If a tensor cannot be read (not contiguous, not on the CPU, another type), sizes
                contradict each other, the machine lacks the set, or there are not 1 to 1,024 threads.
        """

    def run(
        self,
        token_ids: _Longs,
        positions: _Longs,
        slot_mapping: _Longs,
        query_start: NDArray[np.int32],
        block_tables: NDArray[np.int32],
        logits_indices: _Longs,
        logits: NDArray[np.float32],
        adapters: NDArray[np.uint16] | None = None,
    ) -> None:
        """Runs a step with the arrays of a `StepPlan`: writes the cache, and `logits` (S, V) for ascending indices.

        Raises:
            InvalidArgumentError: If arrays contradict each other or point outside the model; nothing is written then.
        """

    def set_adapter(self, number: int, layers: object) -> None:
        """Sets (`runners.cpu_adapters.kernel_adapter`) or removes (None) an adapter; raises InvalidArgumentError."""
    @property
    def instruction_set(self) -> str:
        """Instruction set of the kernels."""
    @property
    def num_threads(self) -> int:
        """Threads that share a step, the calling thread included."""

@final
class TrainingAttention:
    """Causal attention in training on a CPU, over sequences side by side, for contiguous tensors in fp32 or bf16.

    `sizes`: query heads, key heads, a head's width; `starts`: first token of each sequence, then the number of tokens;
    `rotation`: fp32 cosines and sines of channel pairs, or None. InvalidArgumentError: sizes or tensors don't fit.
    """

    def __new__(
        cls, sizes: tuple[int, int, int], scale: float, starts: Sequence[int], rotation: object, num_threads: int
    ) -> TrainingAttention: ...
    def forward(self, joined: object, mixed: object, logsumexp: object) -> None:
        """Writes output and logarithms of sums, (T, H), for queries, keys and values, (T, (H + 2K) D), without GIL."""

    def backward(self, joined: object, kept: tuple[object, object], gradient: object, to_joined: object) -> None:
        """Writes the gradient of `joined` for that of the output; `kept` holds what `forward` wrote."""

def crc32(data: NDArray[np.uint8], before: int) -> int:
    """CRC-32 of `data` (N,) after bytes with the checksum `before`, 0 for none, with the GIL released. Cost: O(N)."""

def row_norm(rule: tuple[object, ...], rows: object, normed: object, kept: object) -> None:
    """Writes fp32 rows (T, C) after a norm: weight, bias or None, eps, is centered, threads; keeps (T, 2)."""

def row_norm_gradients(rule: tuple[object, ...], given: tuple[object, ...], found: tuple[object, ...]) -> None:
    """Writes those of rows, weight, bias for rows, `kept`, gradient, and what reaches rows past the norm or None."""

@final
class AdamW:
    """AdamW of fp32 tensors: parameter, means, step count. Gradients may be bf16. Rules: rate, decay, betas, eps."""

    def __new__(cls, owners: Sequence[tuple[object, object, object, object]], threads: int) -> AdamW: ...
    def norm(self, gradients: Sequence[object]) -> float: ...
    def step(self, gradients: Sequence[object], rules: Sequence[tuple[float, ...]], scale: float) -> None: ...

def gelu(given: object, active: object, gradient: object, is_tanh: bool, threads: int) -> None:
    """Writes GELU of contiguous fp32 `given` on a CPU to `active`, and multiplies a `gradient` by the derivative."""

def label_logprobs(given: tuple[object, ...], has_gradient: bool, scale: float, threads: int) -> None:
    """Writes log-probabilities; given are logits, labels, results, gradient or None; may turn logits into gradients."""

def instruction_sets() -> list[str]:
    """Returns the instruction sets that this machine has and the kernels are compiled for, best last."""

PACKED_SCHEMES: Final[list[str]]  # schemes of quantised weights that can be packed, by their names in GGUF files
PACKED_STRIP_ROWS: Final[int]  # rows that are packed together; a matrix's parts of several schemes begin at multiples

def packed_bytes(scheme: str, rows: int, cols: int) -> int:
    """Returns the bytes of a packed matrix.

    Raises:
        InvalidArgumentError: If the scheme is unknown, or rows are no whole blocks.
    """

def pack_rows(scheme: str, blocks: NDArray[np.uint8], cols: int, packed: NDArray[np.uint8], first: int) -> None:
    """Packs a file's blocks of whole rows as rows `first` and following of `packed`; rows left out must be zero.

    Runs with the GIL released, at about the speed of the memory.

    Raises:
        InvalidArgumentError: If sizes contradict each other, or a scale is not a finite number.
    """

def unpack_rows(scheme: str, packed: NDArray[np.uint8], rows: _Longs, out: NDArray[np.float32]) -> None:
    """Writes the values of some rows into `out` (N, columns), with the bits of the scheme's own definition in fp32.

    Raises:
        InvalidArgumentError: If sizes contradict each other, or a row is not there.
    """

@final
class BPETrainer:
    """Counts pieces of text, then learns merges. The result depends only on the text, not on threads or order."""

    def __new__(
        cls,
        *,
        vocab_size: int,
        pattern: str,
        special_tokens: Sequence[str],
        min_frequency: int = 1,
        max_token_length: int | None = None,
        num_threads: int | None = None,
    ) -> BPETrainer:
        """Creates a trainer that has seen no text.

        `min_frequency` is the smallest count at which a pair is merged, `max_token_length` the largest token in bytes.
        `num_threads` of None means one per core, or `RAYON_NUM_THREADS`.

        Raises:
            InvalidArgumentError: `vocab_size` is below 256 plus the special tokens, a number is not positive, there are
                more than 1,024 threads, or the pattern has an unknown name.
            TokenizerError: A special token is empty, repeated or a single byte, or the regular expression is broken.
        """

    def add(self, texts: Sequence[str], progress: Callable[[int], object] | None = None) -> None:
        """Counts the pieces of `texts` on all threads with the GIL released. Keeps counts, never the text.

        `progress(bytes)` receives the bytes counted so far at least every 50 ms; an exception ends the count, as
        does Ctrl-C. A trainer whose `add` failed midway cannot be used any more.

        Raises:
            InvalidArgumentError: A text holds a lone surrogate.
            TokenizerError: A custom pattern backtracks too much on a text.
        """

    def add_file(self, path: str | os.PathLike[str], progress: Callable[[int], object] | None = None) -> None:
        """Counts a file as `add` does, read in parts; a custom pattern needs the whole file at once.

        Raises:
            DataError: The file cannot be read, or is not UTF-8; the message has the offset of the first bad byte.
            TokenizerError: A custom pattern backtracks too much on it.
        """

    def train(self, progress: Callable[[int, int], object] | None = None) -> Tokenizer:
        """Learns merges with the GIL released.

        `progress(done, total)` is called about every 64 merges; an exception from it ends training, as does Ctrl-C.

        Raises:
            InvalidArgumentError: No text was added, or adding one failed.
        """
