#!/usr/bin/env bash
# PyTorch 2.13.0: `torch.distributed.checkpoint.load` raises for a tensor of another shape, but casts a tensor of another
# number type without a word, to integers as well: 1.9 becomes 1.
source "$(dirname "$0")/common.sh"
install torch==2.13.0 numpy==2.4.6
program <<'PYTHON'
import torch
from torch.distributed import checkpoint

checkpoint.save({"w": torch.tensor([1.9, -2.5])}, checkpoint_id="saved")
for wanted in (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.int64), torch.zeros(3)):
    state = {"w": wanted}
    try:
        checkpoint.load(state, checkpoint_id="saved")
        print(wanted.dtype, state["w"].tolist())
    except BaseException as error:
        print(wanted.dtype, list(wanted.shape), type(error).__name__)
PYTHON
expect <<'OUTPUT'
torch.bfloat16 [1.8984375, -2.5]
torch.int64 [1, -2]
torch.float32 [3] CheckpointException
OUTPUT
