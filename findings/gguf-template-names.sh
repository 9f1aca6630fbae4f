#!/usr/bin/env bash
# gguf 0.19.0: `add_chat_template` with named templates stores their names in the order of a Python set, so the bytes of
# a file change from run to run. Upper-case letters of a name stay; other characters become "_".
source "$(dirname "$0")/common.sh"
install gguf==0.19.0 numpy==2.4.6
program <<'PYTHON'
import os
import subprocess
import sys

WRITE = """
import gguf
writer = gguf.GGUFWriter("a.gguf", "llama")
names = ["default", "Tool Use-2", "rag", "plain"]
writer.add_chat_template([{"name": name, "template": name} for name in names])
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
print(*gguf.GGUFReader("a.gguf").fields["tokenizer.chat_templates"].contents())
"""
orders = set()
for seed in range(8):
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    orders.add(subprocess.run([sys.executable, "-c", WRITE], env=environment, capture_output=True, text=True).stdout)
print("names:", sorted(orders.pop().split()))
print("more than one order in 8 runs:", len(orders) > 0)
PYTHON
expect <<'OUTPUT'
names: ['Tool_Use_2', 'plain', 'rag']
more than one order in 8 runs: True
OUTPUT
