#!/usr/bin/env bash
# gguf 0.19.0: the GGUF specification asks for a multiple of 8 as `general.alignment`. `GGUFReader` asks for a power of
# two instead: it refuses a file aligned to 24 and reads one aligned to 1.
source "$(dirname "$0")/common.sh"
install gguf==0.19.0 numpy==2.4.6
program <<'PYTHON'
import gguf

for alignment in (1, 24, 32):
    writer = gguf.GGUFWriter("a.gguf", "llama")
    writer.add_uint32("general.alignment", alignment)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    try:
        print(alignment, "read as", gguf.GGUFReader("a.gguf").alignment)
    except ValueError as error:
        print(alignment, "ValueError:", error)
PYTHON
expect <<'OUTPUT'
1 read as 1
24 ValueError: Invalid alignment: must be a non-zero power of two
32 read as 32
OUTPUT
