"""Opens any tokenizer this package has a class for."""

from llm.errors import TokenizerError
from llm.tokenization.base import BaseTokenizer
from llm.tokenization.bpe import BPETokenizer
from llm.tokenization.character import SimpleCharacterTokenizer
from llm.tokenization.files import StrPath, read_json_object, tokenizer_file

# Class by the model's type in tokenizer.json.
TOKENIZERS: dict[str, type[BaseTokenizer]] = {"BPE": BPETokenizer, "WordLevel": SimpleCharacterTokenizer}


def load_tokenizer(path: StrPath) -> BaseTokenizer:
    """The tokenizer in a directory or a `tokenizer.json`.

    Raises:
        FileError: There is no such file.
        TokenizerError: It is of a kind, or has a component, that is not supported.
    """
    file = tokenizer_file(path)
    model = read_json_object(file).get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(kind, str) or kind not in TOKENIZERS:
        raise TokenizerError(f"{file}: unsupported `model.type`: must be one of {sorted(TOKENIZERS)}, got {kind!r}")
    return TOKENIZERS[kind].from_pretrained(file)
