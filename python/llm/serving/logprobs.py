"""Log-probabilities in the formats of OpenAI's API."""

from collections.abc import Sequence

from llm.inference import TokenLogprob
from llm.serving.protocol.logprobs import ChatLogprobs, CompletionLogprobs, ContentLogprob, PromptLogprob, TopLogprob
from llm.tokenization import BaseTokenizer


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
    entries: Sequence[TokenLogprob], tokenizer: BaseTokenizer, num_top: int, start: int
) -> CompletionLogprobs:
    """Returns log-probabilities in the completions format: one list per field.

    Args:
        entries: The tokens with their log-probabilities.
        tokenizer: The model's tokenizer.
        num_top: Number of most likely tokens requested; 0 makes `top_logprobs` null.
        start: Offset of the first token in the answer, in characters.
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
    """Returns, for each prompt token, the most likely tokens and the token itself by id; None for the first token."""
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
    """Returns the most likely tokens and the chosen one by text; among tokens with equal text, the most likely wins."""
    by_text: dict[str, float] = {}
    for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
        by_text.setdefault(_text(token_id, tokenizer), logprob)
    return by_text
