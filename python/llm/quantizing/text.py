"""Windows of text to learn from and, apart from those, to compare on."""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm.data.readers import ReadOptions, corpus_files, read_pieces
from llm.errors import CheckpointError, DataError, LLMWarning
from llm.settings.quantization import QuantizationConfig
from llm.tokenization import BaseTokenizer
from llm.tokenization.speed import sample_text

# Text that is read, as a multiple of what is needed at four characters a token: windows are spread over it.
_READ_TIMES = 16
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Windows:
    """Token ids, int64 `[N, T]` each.

    Attributes:
        calibration: Windows that methods learn from; none for methods that don't learn.
        heldout: Windows of the end of the text, on which the result is compared.
    """

    calibration: Tensor
    heldout: Tensor


def read_windows(config: QuantizationConfig, tokenizer: BaseTokenizer, longest: int) -> Windows:
    """Reads the text and divides it into windows, each with BOS first if the model expects it.

    Args:
        config: Files and numbers of tokens.
        tokenizer: The model's tokenizer.
        longest: The model's context.

    Raises:
        CheckpointError: The context has no room for two tokens.
        DataError: The text can't be read or is too short for one window of each kind.
    """
    begin = [tokenizer.bos_id] if tokenizer.settings.add_bos_token and tokenizer.bos_id is not None else []
    width = min(config.window_tokens, longest)
    if width < 2:  # a token to see and one to guess
        raise CheckpointError(f"the model's context must be at least 2 tokens to be compared on text, got {longest}")
    new = width - len(begin)
    wanted = -(-config.calibration_tokens // width), -(-config.heldout_tokens // width)
    ids = _token_ids(config, tokenizer, sum(wanted) * width)
    rows = ids[: len(ids) // new * new].reshape(-1, new)
    if len(rows) < 2:
        raise DataError(
            f"`calibration` must hold at least {2 * new} tokens, got {len(ids)}\n"
            "hint: add text or lower `window_tokens`"
        )
    rows = np.concatenate([np.tile(np.array(begin, rows.dtype), (len(rows), 1)), rows], axis=1)
    num_heldout = max(1, min(wanted[1], len(rows) * wanted[1] // sum(wanted)))
    first = len(rows) - max(num_heldout, len(rows) // 8)
    first = max(first, 1)
    return Windows(_spread(rows[:first], wanted[0]), _spread(rows[first:], num_heldout))


def _token_ids(config: QuantizationConfig, tokenizer: BaseTokenizer, needed: int) -> np.ndarray:
    ends = list(tokenizer.eos_ids[:1])
    limit = needed * _CHARACTERS_PER_TOKEN * _READ_TIMES
    parts: list[int] = []
    for text, is_end in _pieces(config.calibration, limit):
        parts += tokenizer.encode_batch_flat([text]).ids.tolist()
        parts += ends if is_end else []
    return np.array(parts, dtype=np.int64)


def _pieces(paths: Sequence[str | os.PathLike[str]], limit: int) -> Iterator[tuple[str, bool]]:
    """Yields text with whether a document ends, up to a number of characters."""
    if not paths:
        yield sample_text()[:limit], True
        return
    num_read = 0
    for file in corpus_files(paths):
        for text, is_end in read_pieces(file, ReadOptions()):
            yield text[: limit - num_read], is_end
            num_read += len(text)
            if num_read >= limit:
                return


def _spread(rows: np.ndarray, number: int) -> Tensor:
    """Returns up to `number` rows, evenly spread."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(number, len(rows))).round().astype(int))
    return torch.from_numpy(rows[places].astype(np.int64))


def say_text_is_general(*, learns: bool) -> None:
    """Warns that no text of the user's was given, to a method that learns from it or for the comparison alone."""
    warnings.warn(
        (
            "calibrated and compared on Shakespeare's plays, which come with the package; text like that which the "
            "model will see gives better weights and truer figures: `calibration`"
            if learns
            else "compared on Shakespeare's plays, which come with the package; text like that which the model will "
            "see gives truer figures: `calibration`"
        ),
        LLMWarning,
        stacklevel=3,
    )
