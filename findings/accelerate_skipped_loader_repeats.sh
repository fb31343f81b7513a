#!/usr/bin/env bash
# Expected: gather_for_metrics drops the rows that only fill up the last batch of several processes, also in a loader that goes on in the
#   middle of an epoch (skip_first_batches, which the documentation names for a resume).
# Happens: a loader made by skip_first_batches does not know how many rows the last batch really has. The rows that fill it up stay among
#   the gathered ones: rows of the epoch's beginning, counted twice. No warning.
# Version: accelerate 1.15.0, torch 2.13.0.
# Seen: 10 rows, 2 processes, batches of 4 rows: gathered from the last batch [8, 9]; after skip_first_batches(loader, 1)
#   [8, 9, 0, 1, 2, 3, 4, 5]
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 accelerate==1.15.0
python - 2>/dev/null <<'PY'
import os

import torch
import torch.distributed as dist
import torch.multiprocessing


def work(rank, store):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    loader = accelerator.prepare(torch.utils.data.DataLoader(torch.arange(10), batch_size=4))
    whole = [accelerator.gather_for_metrics(batch).tolist() for batch in loader]
    rest = [accelerator.gather_for_metrics(batch).tolist() for batch in accelerator.skip_first_batches(loader, 1)]
    if rank == 0:
        print("whole epoch:", whole, "after one skipped batch:", rest, flush=True)
    assert whole[-1] == [8, 9] and rest == [[8, 9, 0, 1, 2, 3, 4, 5]], "a skipped loader knows its rows now"
    dist.barrier()
    os._exit(0)


torch.multiprocessing.start_processes(work, (os.path.abspath("store"),), nprocs=2, start_method="fork")
PY
