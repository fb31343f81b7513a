#!/usr/bin/env bash
# Expected: gelu of one row of 64 numbers runs on one thread, as silu and tanh do: it is not worth dividing.
# Happens: gelu of a contiguous float tensor goes to oneDNN, which divides it among all threads whatever its size. A model that
#   generates token by token wakes every thread in each layer for next to no work, and beside other programs waits for them. The
#   same numbers seen through a view that is not contiguous, and gelu with approximate="tanh", stay on one thread.
# Version: torch 2.13.0 on an x86-64 CPU.
# Seen (threads that 100 calls start): silu 0, tanh 0, gelu of a view 0, gelu by tanh 0, gelu 1
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
cat > count.py <<'PY'
import os
import sys

import torch
import torch.nn.functional as F

torch.set_num_threads(2)
row = torch.randn(1, 64)
call = {
    "silu": F.silu,
    "tanh": torch.tanh,
    "gelu of a view": lambda row: F.gelu(row.expand(2, -1)),
    "gelu by tanh": lambda row: F.gelu(row, approximate="tanh"),
    "gelu": F.gelu,
}[sys.argv[1]]
before = set(os.listdir("/proc/self/task"))
for _ in range(100):
    call(row)
print(len(set(os.listdir("/proc/self/task")) - before))
PY
python - <<'PY'
import subprocess
import sys

names = ("silu", "tanh", "gelu of a view", "gelu by tanh", "gelu")
started = {name: int(subprocess.check_output([sys.executable, "count.py", name])) for name in names}
print("threads that 100 calls start:", started)
assert started.pop("gelu"), "gelu of one row stays on one thread now"
assert not any(started.values())
PY
