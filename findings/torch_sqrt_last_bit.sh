#!/usr/bin/env bash
# Expected: a square root is correctly rounded (IEEE 754 demands it), so torch.sqrt, numpy.sqrt and math.sqrt agree in
#   every bit, on every machine.
# Happens: on x86-64 torch.sqrt of a contiguous tensor calls MKL's vector function, which misses the last bit in about one
#   of 100 float64 and one of 6 float32 numbers. A tensor of few numbers and torch.compile give the right bits.
# Version: torch 2.13.0 (seen with an AMD EPYC, with ATEN_CPU_CAPABILITY=default, avx2 and avx512 alike).
# Seen: float64: 138 of 10000 differ from math.sqrt; float32: 1714 of 10000 differ from numpy; compiled: 0
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6 setuptools==84.2.1
python - <<'PY'
import math

import numpy as np
import torch

x = torch.rand(10000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 100
right = torch.tensor([math.sqrt(number) for number in x.tolist()], dtype=torch.float64)
wrong64 = (x.sqrt() != right).sum().item()
numpys = np.count_nonzero(np.sqrt(x.numpy()) != right.numpy())
compiled = (torch.compile(torch.sqrt)(x) != right).sum().item()
x32 = x.float()
wrong32 = (x32.sqrt() != torch.from_numpy(np.sqrt(x32.numpy()))).sum().item()
print(f"float64: torch.sqrt wrong in {wrong64}, numpy in {numpys}, compiled in {compiled} of 10000; float32: torch {wrong32}")
assert numpys == compiled == 0
assert wrong64 > 0 and wrong32 > 0, "torch.sqrt is correctly rounded now"
PY
