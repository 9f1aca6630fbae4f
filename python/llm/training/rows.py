"""The rows of a new fine-tuning run: encoded, and compared with what serving would be asked."""

from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path

from llm.checkpoint import Run
from llm.data import ChatDataModule
from llm.data.readers import read_rows
from llm.data.rows import ChatRow, EncodedRow, PreferenceEncoder, RowEncoder
from llm.data.rows.store import mend_rows
from llm.errors import ConfigError, DataError
from llm.inference.answer_format import answer_format
from llm.inference.chat_prompt import chat_ids, template_forms
from llm.settings.run import RunConfig
from llm.tokenization import BaseTokenizer, frame_of

# Rows of each source that a run compares with what serving sees.
CHECKED_ROWS = 8


def row_encoder(tokenizer: BaseTokenizer, loss_on: str) -> RowEncoder:
    """Returns what encodes rows in the forms in which serving encodes conversations."""
    return RowEncoder(tokenizer, loss_on, partial(template_forms, form=answer_format(tokenizer)))


def encoder_of(config: RunConfig, tokenizer: BaseTokenizer) -> RowEncoder:
    """Returns what encodes the rows of a run."""
    if config.data.kind != "preference":
        return row_encoder(tokenizer, config.data.loss_on)
    forms = partial(template_forms, form=answer_format(tokenizer))
    return PreferenceEncoder(tokenizer, forms, pairs_only=config.preference.loss != "kto")


def no_model() -> ConfigError:
    """Returns the error about a run on rows that names no model."""
    return ConfigError(
        "rows of conversations fine-tune a model, and none is named\n"
        "hint: `--model PATH` (a checkpoint, run, Hugging Face directory or .gguf file)"
    )


def prepare_rows(config: RunConfig, run: Run, tokenizer: BaseTokenizer) -> list[str]:
    """Encodes the rows of a run, compares the first ones with what serving would be asked, and returns notices.

    Raises:
        DataError: A row is wrong, or serving would see other ids.
    """
    encoder = encoder_of(config, tokenizer)
    notices: list[str] = []
    ChatDataModule.prepare(run.data, config.data, encoder)
    for file, stored in ChatDataModule(run.data, config.context_length, config.data).first_rows(2 * CHECKED_ROWS):
        if joined := check_served(Path(file.path), stored, encoder, config.data.row_format):
            notices.append(
                f"{file.path}: {joined} answers of the first {CHECKED_ROWS} rows begin with white space that forms one "
                "token with the end of the prompt; that token is not learnt"
            )
    return notices


def mend(config: RunConfig, tokenizer: BaseTokenizer, directory: Path) -> list[str]:
    """Encodes damaged shards of a resumed run anew; returns a sentence about each."""
    return mend_rows(config.data, encoder_of(config, tokenizer), directory)


def check_served(file: Path, stored: Iterable[EncodedRow], encoder: RowEncoder, row_format: str = "auto") -> int:
    """Checks that the first rows begin with the ids that serving is asked with.

    White space at the start of an answer may form one token with the end of the prompt. Such a token lies only
    partly in the turn, so it is not learnt.

    Args:
        file: The file of the rows.
        stored: The first rows of the file, or sequences of them, as they are trained on.
        encoder: What encoded them.
        row_format: The format of the rows.

    Returns:
        Number of answers whose first token is joined with the prompt.

    Raises:
        DataError: Before a turn of the assistant, the ids of a row differ from those of the prompt in serving.
    """
    num_joined = 0
    rows = islice(read_rows(file), CHECKED_ROWS)
    sequences = ((row.where, read) for row in rows for read in encoder.read(row, row_format))
    for (where, read), encoded in zip(sequences, stored, strict=False):
        for served in _served_prompts(encoder, read):
            trained = encoded.ids[: len(served)].tolist()
            if trained == served:
                continue
            num_joined += 1
            if trained[:-1] != served[:-1] or not _begins_with(encoder.tokenizer, trained, served):
                raise DataError(_difference(where, trained, served, encoder.tokenizer))
    return num_joined


def _begins_with(tokenizer: BaseTokenizer, trained: list[int], served: list[int]) -> bool:
    """Returns whether the last token of a row's beginning has that of a prompt as its beginning."""
    return tokenizer.decode_bytes(trained[-1:]).startswith(tokenizer.decode_bytes(served[-1:]))


def _served_prompts(encoder: RowEncoder, read: ChatRow) -> list[list[int]]:
    """Returns the ids of what serving is asked with before each turn of the assistant."""
    tokenizer = encoder.tokenizer
    if encoder.is_plain and read.plain is not None:
        return [[*frame_of(tokenizer)[0], *tokenizer.encode(read.plain[0])]]
    form = answer_format(tokenizer)
    return [chat_ids(tokenizer, messages, options, form) for messages, options in encoder.prompts(read)]


def _difference(where: str, trained: list[int], served: list[int], tokenizer: BaseTokenizer) -> str:
    pairs = zip(trained, served, strict=False)
    at = next((idx for idx, (one, other) in enumerate(pairs) if one != other), min(len(trained), len(served)))
    words = [repr(tokenizer.decode(ids[at : at + 8])) for ids in (trained, served)]
    return (
        f"{where}: the ids trained on must be those served; from token {at} on training has {words[0]}, and serving "
        f"{words[1]}\nhint: the chat template writes a turn differently once an answer follows; give one that doesn't "
        "by `--chat-template`"
    )
