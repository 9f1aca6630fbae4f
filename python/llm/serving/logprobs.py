"""Log-probabilities in the formats of OpenAI's API."""

import codecs
from collections.abc import Iterable, Sequence

from llm.inference import TokenLogprob
from llm.serving.protocol.logprobs import ChatLogprobs, CompletionLogprobs, ContentLogprob, PromptLogprob, TopLogprob
from llm.tokenization import BaseTokenizer


class TextOffsets:
    """Finds where each token begins in a text that grows token by token, in characters.

    A token that begins inside a character gets that character's offset. A special token without text gets the offset
    of the token after it.

    Args:
        tokenizer: The model's tokenizer.
        skip_special_tokens: Whether special tokens have no text.
        start: Offset of the first token.
    """

    def __init__(self, tokenizer: BaseTokenizer, *, skip_special_tokens: bool = True, start: int = 0) -> None:
        self._tokenizer = tokenizer
        self._hidden = frozenset(tokenizer.special_tokens.values()) if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.end = start

    def push(self, token_id: int) -> int:
        """Appends a token and returns where it begins."""
        begin = self.end
        if token_id not in self._hidden:
            self.end += len(self._decoder.decode(self._tokenizer.id_to_piece(token_id)))
        return begin


def prompt_offsets(token_ids: Sequence[int], text: str, offsets: TextOffsets) -> list[int]:
    """Returns where each token of a prompt begins in its text.

    Args:
        token_ids: The prompt.
        text: The prompt's text.
        offsets: An object for the prompt alone.
    """
    found = [offsets.push(token_id) for token_id in token_ids]
    # Some tokenizers put a space before a text, which is not part of it.
    num_added = max(0, offsets.end - len(text))
    return [min(max(0, offset - num_added), len(text)) for offset in found]


def chat_logprobs(entries: Sequence[TokenLogprob], tokenizer: BaseTokenizer) -> ChatLogprobs:
    """Returns log-probabilities in the chat format: one object per token, with the token's bytes."""
    content = [
        ContentLogprob(
            token=_text(entry.token_id, tokenizer),
            logprob=entry.logprob,
            bytes=list(tokenizer.id_to_piece(entry.token_id)),
            top_logprobs=[
                TopLogprob(
                    token=_text(token_id, tokenizer), logprob=logprob, bytes=list(tokenizer.id_to_piece(token_id))
                )
                for token_id, logprob in entry.top
            ],
        )
        for entry in entries
    ]
    return ChatLogprobs(content=content)


def completion_logprobs(
    entries: Sequence[TokenLogprob],
    tokenizer: BaseTokenizer,
    num_top: int,
    offsets: Sequence[int],
    *,
    first_token_id: int | None = None,
) -> CompletionLogprobs:
    """Returns log-probabilities in the completions format: one list per field.

    Args:
        entries: The tokens with their log-probabilities.
        tokenizer: The model's tokenizer.
        num_top: Number of most likely tokens requested; 0 makes `top_logprobs` null.
        offsets: Offset of each token in the text, in characters.
        first_token_id: A token before all entries that has no log-probability: the first one of a prompt.
    """
    leading = () if first_token_id is None else (first_token_id,)
    unscored: list[None] = [None] * len(leading)
    return CompletionLogprobs(
        tokens=[token_name(token_id, tokenizer) for token_id in (*leading, *(entry.token_id for entry in entries))],
        token_logprobs=[*unscored, *(entry.logprob for entry in entries)],
        top_logprobs=[*unscored, *(_by_name(entry, tokenizer, num_top) for entry in entries)] if num_top else None,
        text_offset=list(offsets),
    )


def joined(parts: Iterable[CompletionLogprobs]) -> CompletionLogprobs:
    """Returns the log-probabilities of a text's parts as those of the whole text."""
    tokens, token_logprobs, top_logprobs, text_offset = [], [], [], []
    has_top = False
    for part in parts:
        tokens += part.tokens
        token_logprobs += part.token_logprobs
        top_logprobs += part.top_logprobs or []
        has_top = has_top or part.top_logprobs is not None
        text_offset += part.text_offset
    return CompletionLogprobs(
        tokens=tokens,
        token_logprobs=token_logprobs,
        top_logprobs=top_logprobs if has_top else None,
        text_offset=text_offset,
    )


def prompt_logprobs(
    entries: Sequence[TokenLogprob], tokenizer: BaseTokenizer, num_tokens: int, num_top: int
) -> list[dict[str, PromptLogprob] | None]:
    """Returns, for each prompt token, the most likely tokens and the token itself by id; None for unscored tokens.

    Args:
        entries: The scored tokens, which are the prompt's last ones.
        tokenizer: The model's tokenizer.
        num_tokens: Number of tokens in the prompt.
        num_top: Number of most likely tokens requested.
    """
    positions: list[dict[str, PromptLogprob] | None] = [None] * (num_tokens - len(entries))
    for entry in entries:
        of_token = {
            token_id: PromptLogprob(logprob=logprob, rank=rank, decoded_token=_text(token_id, tokenizer))
            for rank, (token_id, logprob) in enumerate(entry.top[:num_top], start=1)
        }
        of_token[entry.token_id] = PromptLogprob(
            logprob=entry.logprob, rank=entry.rank, decoded_token=_text(entry.token_id, tokenizer)
        )
        positions.append({str(token_id): value for token_id, value in of_token.items()})
    return positions


def _text(token_id: int, tokenizer: BaseTokenizer) -> str:
    return tokenizer.id_to_piece(token_id).decode("utf-8", "replace")


def token_name(token_id: int, tokenizer: BaseTokenizer) -> str:
    r"""Returns a token's text, or its bytes as `bytes:\\xf0\\x9f` if they are no whole text, as OpenAI names them."""
    piece = tokenizer.id_to_piece(token_id)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _by_name(entry: TokenLogprob, tokenizer: BaseTokenizer, num_top: int) -> dict[str, float]:
    """Returns the most likely tokens and the chosen one by name; among tokens of equal bytes, the most likely wins."""
    by_name: dict[str, float] = {}
    for token_id, logprob in (*entry.top[:num_top], (entry.token_id, entry.logprob)):
        by_name.setdefault(token_name(token_id, tokenizer), logprob)
    return by_name
