#!/usr/bin/env bash
# gguf 0.19.0: `GGUFWriter` accepts an empty array and an empty string, then writes neither; an array of arrays comes
# back from `GGUFReader.fields[...].contents()` flattened. A tokenizer without merges therefore loses the key
# `tokenizer.ggml.merges`, and readers cannot tell "none" from "forgotten".
source "$(dirname "$0")/common.sh"
install gguf==0.19.0 numpy==2.4.6
program <<'PYTHON'
import gguf

writer = gguf.GGUFWriter("a.gguf", "llama")
writer.add_array("empty_array", [])
writer.add_string("empty_string", "")
writer.add_string("string", "x")
writer.add_array("nested", [[1, 2], [3, 4]])
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
fields = gguf.GGUFReader("a.gguf").fields
print("keys:", [name for name in fields if not name.startswith("GGUF.")])
print("nested:", fields["nested"].contents())
PYTHON
expect <<'OUTPUT'
keys: ['general.architecture', 'string', 'nested']
nested: [1, 2, 3, 4]
OUTPUT
