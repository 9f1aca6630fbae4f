#!/usr/bin/env bash
# PyTorch 2.13.0: after `fully_shard`, `clip_grad_norm_` returns a DTensor that is already replicated: `float(norm)` is
# the norm over all ranks, without `.full_tensor()`. With a bfloat16 mixed-precision policy, gradients stay float32.
source "$(dirname "$0")/common.sh"
install torch==2.13.0 numpy==2.4.6
program <<'PYTHON'
import os

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard


def work(rank):
    dist.init_process_group("gloo", init_method=f"file://{os.path.abspath('rendezvous')}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    model(torch.ones(1, 4)).sum().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
    if rank == 0:
        print(type(norm).__name__, norm.placements, float(norm))
        print("gradient:", model.weight.grad.dtype)
    dist.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.spawn(work, nprocs=2)
PYTHON
expect <<'OUTPUT'
DTensor (Replicate(),) 4.0
gradient: torch.float32
OUTPUT
