#!/usr/bin/env bash
# Expected: `if not weight.isfinite().all(): ...` of a sharded weight (a DTensor, as fully_shard makes them) goes the same way on all ranks;
#   the item() of a sum, a maximum or a norm is that of the whole tensor.
# Happens: the reduction is still open ("Partial"), and bool(), item() and float() read this rank's part of it without a word. One NaN stops
#   one rank and not the others, which wait for it; a printed sum, maximum or norm is that of a shard. full_tensor() gives the whole one.
# Version: torch 2.13.0.
# Seen: [0, 1, 2, NaN] in two shards: all finite: True on rank 0, False on rank 1; [0, 1, 2, 3]: sum 1 and 5, maximum 1 and 3, norm 1 and 3.61
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
python - 2>/dev/null <<'PY'
import os

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor


def work(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    damaged = distribute_tensor(torch.tensor([0.0, 1.0, 2.0, torch.nan]), mesh, [Shard(0)])
    counted = distribute_tensor(torch.arange(4.0), mesh, [Shard(0)])
    is_finite = bool(damaged.isfinite().all())
    seen = (counted.sum().item(), counted.max().item(), round(counted.norm().item(), 2))
    print(f"rank {rank}: all finite: {is_finite}; sum, maximum, norm: {seen}", flush=True)
    assert bool(damaged.isfinite().all().full_tensor()) is False and counted.sum().full_tensor().item() == 6
    assert (is_finite, seen) == ((True, (1, 1, 1)), (False, (5, 3, 3.61)))[rank], "reductions are of the whole now"
    dist.barrier()
    os._exit(0)


torch.multiprocessing.start_processes(work, (os.path.abspath("store"),), nprocs=2, start_method="fork")
PY
