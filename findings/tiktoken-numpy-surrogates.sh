#!/usr/bin/env bash
# tiktoken 0.14.0: `encode` replaces a lone surrogate with U+FFFD; `encode_to_numpy` raises for the same text.
source "$(dirname "$0")/common.sh"
install tiktoken==0.14.0 numpy==2.4.6
program <<'PYTHON'
import tiktoken

ranks = {bytes([byte]): byte for byte in range(256)}
encoding = tiktoken.Encoding("bytes", pat_str=".", mergeable_ranks=ranks, special_tokens={})
print("encode:", encoding.encode("a\ud800"))
try:
    print("encode_to_numpy:", encoding.encode_to_numpy("a\ud800"))
except UnicodeEncodeError as error:
    print("encode_to_numpy:", type(error).__name__)
PYTHON
expect <<'OUTPUT'
encode: [97, 239, 191, 189]
encode_to_numpy: UnicodeEncodeError
OUTPUT
