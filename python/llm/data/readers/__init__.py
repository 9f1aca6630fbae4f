"""Readers of corpora: text, JSON lines and Parquet, plain or compressed, as a stream of pieces of documents."""

from llm.data.readers.files import content_digest, corpus_files, kind_of
from llm.data.readers.pieces import DEFAULT_SEPARATOR, Piece, ReadNotes, ReadOptions, num_bytes, pieces_of, sliced
from llm.data.readers.read import read_blocks, read_pieces
from llm.data.readers.rows import Row, read_rows

__all__ = [
    "DEFAULT_SEPARATOR",
    "Piece",
    "ReadNotes",
    "ReadOptions",
    "Row",
    "content_digest",
    "corpus_files",
    "kind_of",
    "num_bytes",
    "pieces_of",
    "read_blocks",
    "read_pieces",
    "read_rows",
    "sliced",
]
