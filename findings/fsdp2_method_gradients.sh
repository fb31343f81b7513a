#!/usr/bin/env bash
# Expected: on a model under FSDP2 (fully_shard), a method other than forward either raises or trains as forward does.
# Happens: before the first forward it raises (mixed torch.Tensor and DTensor). After one forward without gradients (a validation, say) it
#   runs: the weights are still whole. But its gradients stay where optimizer.step() does not see them and zero_grad() does not clear them;
#   the next backward of a forward adds them all to its own. torch.distributed.fsdp.register_fsdp_forward_method names such methods.
# Version: torch 2.13.0.
# Seen: 3 steps through encode(): the weight does not move; then one forward whose gradient is 10: the gradient is 13
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
python - 2>/dev/null <<'PY'
import os

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)

    def encode(self, x):
        return self.linear(x)

    def forward(self, x):
        return self.encode(x)


def work(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = fully_shard(Encoder(), mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    x, raised = torch.ones(1, 2), ""
    try:
        model.encode(x)
    except RuntimeError as error:
        raised = str(error)[:60]
    with torch.no_grad():
        before = model(x).clone()
    for _ in range(3):
        model.encode(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    is_same = torch.equal(model.encode(x), before)
    model(10 * x).sum().backward()
    gradient = model.linear.weight.grad.full_tensor()[0].tolist()
    print(f"rank {rank}: first: {raised!r}; 3 steps moved nothing: {is_same}; gradient then, of 10: {gradient}", flush=True)
    assert raised and is_same and gradient == [13, 13], "methods raise or train now"
    dist.barrier()
    os._exit(0)


torch.multiprocessing.start_processes(work, (os.path.abspath("store"),), nprocs=2, start_method="fork")
PY
