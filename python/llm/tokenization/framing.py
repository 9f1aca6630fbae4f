"""The special tokens that a tokenizer puts around a text."""

from llm.tokenization.base import BaseTokenizer
from llm.tokenization.bpe import BPETokenizer


def frame_of(tokenizer: BaseTokenizer) -> tuple[list[int], list[int]]:
    """Returns the ids that stand before and after each text, such as BOS; both may be empty."""
    before, after = (tokenizer.template if isinstance(tokenizer, BPETokenizer) else None) or ([], [])
    if not before and tokenizer.settings.add_bos_token and tokenizer.bos_id is not None:
        before = [tokenizer.bos_id]
    return list(before), list(after)
