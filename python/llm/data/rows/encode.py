"""Rows as token ids, with a mask of what is learnt."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from llm.data.readers import Row
from llm.data.rows.formats import ChatRow, chat_row
from llm.data.rows.preferences import preference_rows
from llm.errors import ChatTemplateError, DataError, LLMError
from llm.tokenization import BaseTokenizer, ChatOptions, TokenArray, encode_chat, encode_chat_with_mask, frame_of

# Part of the name of encoded rows: what gives the same row other ids must raise it.
_VERSION = 1

Messages: TypeAlias = Sequence[Mapping[str, Any]]
# The forms of a conversation that a template may accept, each with the template's further inputs, best first.
Forms: TypeAlias = Callable[[Messages, ChatOptions], Iterable[tuple[Messages, ChatOptions]]]


class EncodedRow(NamedTuple):
    """Token ids and which of them are learnt, whether as an answer to avoid, and by what margin it is better."""

    ids: TokenArray  # (T,)
    is_learnt: NDArray[np.bool_]  # (T,)
    is_wanted: bool = True
    margin: float = 0.0


class RowEncoder:
    """Encodes rows as serving encodes conversations.

    A prompt with its completion is a conversation of two turns where the tokenizer has a chat template. Without one it
    is plain text that ends with the end-of-text token.

    Args:
        tokenizer: The model's tokenizer.
        loss_on: `assistant`: every turn of the assistant is learnt; `last`: the last one; `all`: everything.
        forms: Brings a conversation into the forms that the chat path of inference tries.
    """

    def __init__(self, tokenizer: BaseTokenizer, loss_on: str, forms: Forms) -> None:
        self.tokenizer = tokenizer
        self.loss_on = loss_on
        self._forms = forms

    @property
    def digest(self) -> str:
        """Names everything besides the row that decides its ids."""
        settings = repr(self.tokenizer.settings)
        made_from = [_VERSION, self.tokenizer.to_json(), settings, self.loss_on]
        return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()

    @property
    def is_plain(self) -> bool:
        """Whether there is no chat template, so that only prompts with completions can be learnt."""
        return self.tokenizer.chat_template is None and not self.tokenizer.settings.named_templates

    def read(self, row: Row, row_format: str) -> list[ChatRow]:
        """Returns the conversations of a row, each of which becomes a sequence.

        Raises:
            DataError: The row is of no format, or breaks the rules of its format.
        """
        return [chat_row(row, row_format)]

    def encode(self, row: ChatRow, where: str) -> EncodedRow:
        """Returns the ids of a row.

        Args:
            row: The row.
            where: Where it stands, for messages.

        Raises:
            DataError: The chat template refuses the row, nothing of it is learnt, or there is no template for it.
        """
        try:
            encoded = self._encoded(row)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        except LLMError as error:
            raise DataError(f"{where}: the row can't be encoded: {error}") from error
        if not encoded.is_learnt[1:].any():
            raise DataError(
                f"{where}: no token of the row is learnt: the chat template writes no text of the assistant's turns\n"
                "hint: check that their `content` isn't empty, or set `data.loss_on=all`"
            )
        return encoded._replace(is_wanted=row.is_wanted, margin=row.margin)

    def prompts(self, row: ChatRow) -> list[tuple[Messages, ChatOptions]]:
        """Returns the conversation before each turn of the assistant: what serving would be asked."""
        turns = [idx for idx, message in enumerate(row.messages) if message["role"] == "assistant" and idx]
        return [(row.messages[:idx], _options(row)) for idx in turns]

    def _encoded(self, row: ChatRow) -> EncodedRow:
        if self.is_plain:
            return self._plain(row)
        failed: ChatTemplateError | None = None
        for messages, options in self._forms(row.messages, _options(row)):
            try:
                # A form may have a system message more than the row.
                num_read = max(0, len(messages) - len(row.messages) + row.num_read)
                return self._conversation(messages, options, num_read)
            except ChatTemplateError as error:
                failed = failed or error
        assert failed is not None  # noqa: S101 (there is at least one form)
        raise failed

    def _conversation(self, messages: Messages, options: ChatOptions, num_read: int) -> EncodedRow:
        inputs: Any = {name: value for name, value in options.items() if value is not None}
        encoding = encode_chat_with_mask(self.tokenizer, messages, **inputs)
        if self.loss_on == "all":
            return EncodedRow(encoding.ids, np.ones(len(encoding.ids), np.bool_))
        last = max(idx for idx, message in enumerate(messages) if message["role"] == "assistant")
        first = last if self.loss_on == "last" else num_read
        if not any(message["role"] == "assistant" for message in messages[:first]):
            return EncodedRow(encoding.ids, encoding.is_assistant)
        before = encode_chat(self.tokenizer, messages[:first], **inputs)
        is_answer = np.arange(len(encoding.ids)) >= _common(encoding.ids, np.array(before, np.uint32))
        return EncodedRow(encoding.ids, encoding.is_assistant & is_answer)

    def _plain(self, row: ChatRow) -> EncodedRow:
        if row.plain is None:
            raise DataError(
                "a conversation needs a chat template, and the model has none\n"
                "hint: name one: `--chat-template chatml`, or a file in Jinja"
            )
        prompt, completion = row.plain
        before = np.concatenate([np.array(frame_of(self.tokenizer)[0], np.uint32), self._ids(prompt)])
        ids = np.concatenate([before, self._ids(completion), np.array(self.tokenizer.eos_ids[:1], np.uint32)])
        is_learnt = np.ones(len(ids), np.bool_)
        is_learnt[: len(before)] = self.loss_on == "all"
        return EncodedRow(ids, is_learnt)

    def _ids(self, text: str) -> NDArray[np.uint32]:
        return self.tokenizer.encode_to_numpy(text)


class PreferenceEncoder(RowEncoder):
    """Encodes rows of preferences, of which only the answers are learnt.

    Args:
        tokenizer: The model's tokenizer.
        forms: As in `RowEncoder`.
        pairs_only: Whether each row must have a chosen and a rejected answer.
    """

    def __init__(self, tokenizer: BaseTokenizer, forms: Forms, *, pairs_only: bool) -> None:
        super().__init__(tokenizer, "assistant", forms)
        self.pairs_only = pairs_only

    @property
    def digest(self) -> str:
        """Names everything besides the row that decides its ids."""
        return hashlib.sha256(f"preference {super().digest} {self.pairs_only}".encode()).hexdigest()

    def read(self, row: Row, row_format: str) -> list[ChatRow]:
        """Returns the conversations of a row: the chosen before the rejected one, or a single one."""
        return preference_rows(row, row_format, pairs_only=self.pairs_only)


def _options(row: ChatRow) -> ChatOptions:
    return cast(ChatOptions, dict(row.options))


def _common(ids: NDArray[np.uint32], others: NDArray[np.uint32]) -> int:
    """Returns the number of tokens at the start that are equal."""
    size = min(len(ids), len(others))
    different = np.flatnonzero(ids[:size] != others[:size])
    return int(different[0]) if len(different) else size
