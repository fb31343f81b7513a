#!/usr/bin/env bash
# Expected: Accelerator.gather_for_metrics brings together what all processes computed, less the rows that only fill up the last batch. Of a
#   tensor with one value a token, or with sums of a batch, it keeps all values that belong to real rows.
# Happens: in the last batch it keeps as many ENTRIES as there are real rows left, whatever an entry is. Values of tokens are lost, and so are
#   the later numbers of [sum, count]. No warning; every other batch is right.
# Version: accelerate 1.15.0, torch 2.13.0.
# Seen: 5 rows of 3 tokens, 2 processes, batches of 2 rows: 3, 3, 3, 3 and 1 values of rows 0 to 4; the sum and count of the last row: [4]
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
    rows = torch.arange(5)[:, None].expand(5, 3)  # row i: three tokens with value i
    tokens, sums = [], []
    for batch in accelerator.prepare(torch.utils.data.DataLoader(rows, batch_size=2)):
        tokens += accelerator.gather_for_metrics(batch.flatten()).tolist()
        sums.append(accelerator.gather_for_metrics(torch.stack([batch[:, 0].sum(), torch.tensor(len(batch))])).tolist())
    counts = [tokens.count(row) for row in range(5)]
    if rank == 0:
        print("tokens gathered of rows 0 to 4:", counts, "sums and counts of rows:", sums, flush=True)
    assert counts == [3, 3, 3, 3, 1] and sums[-1] == [4], "all values of real rows are kept now"
    dist.barrier()
    os._exit(0)


torch.multiprocessing.start_processes(work, (os.path.abspath("store"),), nprocs=2, start_method="fork")
PY
