#!/usr/bin/env bash
# safetensors 0.8.0 with PyTorch 2.13.0: `safetensors.torch.load_file` reads tensors of F4 (two numbers a byte, so the
# last dimension halves) and F8_E8M0; `safetensors.torch.load` raises a KeyError for the same bytes.
source "$(dirname "$0")/common.sh"
install safetensors==0.8.0 torch==2.13.0 numpy==2.4.6 packaging==26.4
program <<'PYTHON'
import json
import struct
from pathlib import Path

import safetensors.torch

for dtype, shape in (("F8_E4M3", [4]), ("F8_E8M0", [4]), ("F4", [2, 4])):
    header = json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, 4]}}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(4)
    Path("x.safetensors").write_bytes(content)
    tensor = safetensors.torch.load_file("x.safetensors")["x"]
    print(dtype, shape, "load_file:", tensor.dtype, list(tensor.shape))
    try:
        print(dtype, shape, "load:", safetensors.torch.load(content)["x"].dtype)
    except KeyError as error:
        print(dtype, shape, "load: KeyError", error)
PYTHON
expect <<'OUTPUT'
F8_E4M3 [4] load_file: torch.float8_e4m3fn [4]
F8_E4M3 [4] load: torch.float8_e4m3fn
F8_E8M0 [4] load_file: torch.float8_e8m0fnu [4]
F8_E8M0 [4] load: KeyError 'F8_E8M0'
F4 [2, 4] load_file: torch.float4_e2m1fn_x2 [2, 2]
F4 [2, 4] load: KeyError 'F4'
OUTPUT
