"""Train a tokenizer on a text file, save it, and compare its size on the text with the bytes.

Usage: python examples/train_tokenizer.py corpus.txt runs/tokenizer
"""

import sys
from pathlib import Path

from llm import BPETokenizer, load_tokenizer


def main(corpus: str, out: str, vocab_size: int = 1024) -> None:
    """Trains byte-level BPE; the saved directory opens in `transformers` and `tokenizers` as well."""
    tokenizer = BPETokenizer.train(corpus, vocab_size=vocab_size)
    tokenizer.save(out)

    text = Path(corpus).read_text(encoding="utf-8")
    ids = load_tokenizer(out).encode(text)
    print(f"{tokenizer.vocab_size} tokens; {len(text.encode()) / len(ids):.2f} bytes a token")
    print("decoded text is equal:", tokenizer.decode(ids) == text)
    print("pieces of the first line:", [tokenizer.decode([token]) for token in ids[:8]])


if __name__ == "__main__":
    if len(sys.argv) != 3 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(*sys.argv[1:])
