"""Log-probabilities as OpenAI's API words them."""

from collections.abc import Sequence

from llm.inference import TokenLogprob
from llm.serving.protocol import (
    ChatLogprobs,
    CompletionLogprobs,
    ContentLogprob,
    PromptLogprob,
    TopLogprob,
)
from llm.tokenization import BaseTokenizer


def chat_logprobs(entries: Sequence[TokenLogprob], tokenizer: BaseTokenizer) -> ChatLogprobs:
    """One object a token, with its bytes."""
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
    entries: Sequence[TokenLogprob], tokenizer: BaseTokenizer, num_top: int, start: int
) -> CompletionLogprobs:
    """Columns.

    Args:
        entries: The tokens.
        tokenizer: Of the model.
        num_top: How many of the likeliest were asked for; with 0 the column is null.
        start: Where in the answer the first token begins, in characters.
    """
    tokens = [_text(entry.token_id, tokenizer) for entry in entries]
    offsets = [start]
    for token in tokens:
        offsets.append(offsets[-1] + len(token))
    return CompletionLogprobs(
        tokens=tokens,
        token_logprobs=[entry.logprob for entry in entries],
        top_logprobs=[_by_text(entry, tokenizer) for entry in entries] if num_top else None,
        text_offset=offsets[:-1],
    )


def prompt_logprobs(entries: Sequence[TokenLogprob], tokenizer: BaseTokenizer) -> list[dict[str, PromptLogprob] | None]:
    """By token id: the likeliest, and the prompt's own token in any case; the first token comes out of nothing."""
    positions: list[dict[str, PromptLogprob] | None] = [None]
    for entry in entries:
        of_token = {
            token_id: PromptLogprob(logprob=logprob, rank=rank, decoded_token=_text(token_id, tokenizer))
            for rank, (token_id, logprob) in enumerate(entry.top, start=1)
        }
        of_token[entry.token_id] = PromptLogprob(
            logprob=entry.logprob, rank=entry.rank, decoded_token=_text(entry.token_id, tokenizer)
        )
        positions.append({str(token_id): value for token_id, value in of_token.items()})
    return positions


def _text(token_id: int, tokenizer: BaseTokenizer) -> str:
    return tokenizer.id_to_piece(token_id).decode("utf-8", "replace")


def _by_text(entry: TokenLogprob, tokenizer: BaseTokenizer) -> dict[str, float]:
    """The likeliest by their text, and the token that came; of several with one text the likeliest counts."""
    by_text: dict[str, float] = {}
    for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
        by_text.setdefault(_text(token_id, tokenizer), logprob)
    return by_text
