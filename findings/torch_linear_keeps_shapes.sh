#!/usr/bin/env bash
# Expected: a Linear on a CPU needs memory for its weights and its output. Calling it with 300 different numbers of rows, one after the
#   other, leaves the process about as large as calling it 300 times with one.
# Happens: where PyTorch multiplies by oneDNN (bfloat16 on processors with instructions for it, and the operator that torch.compile
#   writes for a float32 Linear), every new number of rows is compiled and kept, with buffers of its own. PyTorch and oneDNN keep 1,024
#   each, so a training over texts of many lengths grows by megabytes a step, to gigabytes. It also takes up to twice the time.
#   LRU_CACHE_CAPACITY and ONEDNN_PRIMITIVE_CACHE_CAPACITY, set before the first product, bound it. A float32 F.linear goes to MKL.
# Version: torch 2.13.0, with oneDNN inside, on Linux x86-64.
# Seen: MB after 300 calls of weights of 2 MB, Xeon with AMX: one number of rows 0 to 3; 300 numbers 561 in float32, 208 in bfloat16
#   (processors without bfloat16 products: 0, it goes elsewhere); 300 numbers with a capacity of 16: under 100.
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
cat > rows.py <<'PY'
import re
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
kind, counts = sys.argv[1:]
dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
weight, rows = torch.randn(2000, 256).to(dtype), torch.randn(400, 256).to(dtype)


def linear(count):
    if kind == "bfloat16":
        return F.linear(rows[:count], weight)
    return torch.ops.mkldnn._linear_pointwise(rows[:count], weight, None, "none", [], "")


def megabytes():
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


with torch.no_grad():
    linear(399)
    before = megabytes()
    for count in range(100, 400) if counts == "many" else [399] * 300:
        linear(count)
print(round(megabytes() - before))
PY
one=$(python rows.py float32 one)
many=$(python rows.py float32 many)
low=$(python rows.py bfloat16 many)
bounded=$(LRU_CACHE_CAPACITY=16 ONEDNN_PRIMITIVE_CACHE_CAPACITY=16 python rows.py float32 many)
echo "MB: one number of rows $one, 300 numbers $many, in bfloat16 $low; with a capacity of 16: $bounded"
[ "$one" -lt 20 ] && [ "$many" -gt 150 ] && [ "$bounded" -lt $((many / 2)) ]
