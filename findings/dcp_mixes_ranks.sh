#!/usr/bin/env bash
# Expected: what torch.distributed.checkpoint saves from two processes is, for plain tensors and numbers that differ between them, each
#   process's own, or the first one's, or an error.
# Happens: of each key one process's value is stored, and which one differs from key to key (the work of writing is shared out). A state that
#   differs between processes (a position in the data, a random state, statistics that were not averaged) comes back on every process as a
#   MIX of both. No warning. Only sharded tensors, and keys that name their process, are safe.
# Version: torch 2.13.0.
# Seen: rank 0 saves 0 everywhere, rank 1 saves 1 everywhere; loaded on both: mean 0, variance 1, count 0, step 1, position 1
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
python - 2>/dev/null <<'PY'
import os

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing


def values(number):
    tensors = {name: torch.full((2,), float(number)) for name in ("mean", "variance", "count")}
    return tensors | {"data": {"step": number, "position": number}}


def work(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    dcp.save(values(rank), checkpoint_id="saved")
    loaded = values(-1)
    dcp.load(loaded, checkpoint_id="saved")
    print(f"rank {rank} saved {rank} everywhere and loads", loaded, flush=True)
    numbers = [loaded[name][0].item() for name in ("mean", "variance", "count")] + list(loaded["data"].values())
    assert set(numbers) == {0, 1}, "all values come from one process now"
    dist.barrier()
    os._exit(0)


torch.multiprocessing.start_processes(work, (os.path.abspath("store"),), nprocs=2, start_method="fork")
PY
