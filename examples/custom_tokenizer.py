"""Write a tokenizer of your own, train a model with it, and serve the checkpoint like any other.

Usage: python examples/custom_tokenizer.py corpus.txt runs/bytes
"""

import json
import sys
from typing import Self

import numpy as np

from llm import LLM, BaseTokenizer, SamplingParams, train
from llm.tokenization import TokenizerSettings

END = "<|endoftext|>"


class ByteTokenizer(BaseTokenizer):
    """Each UTF-8 byte is a token, and `<|endoftext|>` is token 256."""

    def __init__(self) -> None:
        super().__init__(TokenizerSettings.for_special_tokens([END]))

    @property
    def vocab_size(self) -> int:
        """The 256 bytes and the end token."""
        return 257

    @property
    def special_tokens(self) -> dict[str, int]:
        """The end token and its id."""
        return {END: 256}

    def token_bytes(self) -> list[bytes | None]:
        """The bytes of each id; the server detokenizes with this table."""
        return [bytes([byte]) for byte in range(256)] + [END.encode()]

    def decode_bytes(self, ids: list[int], *, skip_special_tokens: bool = False) -> bytes:
        """The bytes of `ids`."""
        table = self.token_bytes()
        return b"".join(table[i] for i in ids if i < 256 or not skip_special_tokens)

    def to_json(self) -> str:
        """A byte-level BPE without merges, so that every program that reads `tokenizer.json` finds the same ids."""
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        document = {
            "version": "1.0",
            "added_tokens": [{"id": 256, "content": END, "special": True, **flags}],
            "pre_tokenizer": level,
            "decoder": level,
            "model": {"type": "BPE", "vocab": _printable() | {END: 256}, "merges": []},
        }
        return json.dumps(document)

    @classmethod
    def from_pretrained(cls, path: object) -> Self:  # noqa: ARG003 -- nothing to read: there is only one
        """The one byte tokenizer."""
        return cls()

    def _encode_ordinary(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint32)


def _printable() -> dict[str, int]:
    """The visible character that `tokenizer.json` writes for each byte, and its id (GPT-2's table)."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + idx): byte for idx, byte in enumerate(rest)}


def main(corpus: str, out: str) -> None:
    """Trains with the tokenizer object; `LLM` reopens it from the checkpoint's `tokenizer.json`."""
    tokenizer = ByteTokenizer()
    settings = ["model.hidden_size=64", "model.num_hidden_layers=2", "model.max_position_embeddings=64"]
    checkpoint = train(data=corpus, tokenizer=tokenizer, out=out, max_steps=20, overrides=settings)
    model = LLM(checkpoint)
    text = "größer 語"
    print(f"{len(tokenizer.encode(text))} tokens; reopened ids are equal: ", end="")
    print(model.tokenizer.encode(text) == tokenizer.encode(text))
    print(repr(model.generate("ROMEO:\n", SamplingParams(max_tokens=24, seed=1)).text))


if __name__ == "__main__":
    if len(sys.argv) != 3 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(*sys.argv[1:])
