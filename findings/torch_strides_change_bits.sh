#!/usr/bin/env bash
# Expected: an elementwise function gives a number's result from that number alone; exp, log and tanh do.
# Happens: gelu, silu, sigmoid, softplus and exp2 have other last bits for a strided view than for its contiguous copy:
#   strided numbers go through scalar code with another exponential.
# Version: torch 2.13.0 on a CPU with AVX2 or AVX-512.
# Seen (of 10000 float32): exp 0, tanh 0, gelu 1846, silu 390, sigmoid 389, softplus 1441, exp2 593
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
python - <<'PY'
import torch
import torch.nn.functional as F

view = torch.randn(20000, generator=torch.Generator().manual_seed(0))[::2]
functions = dict(exp=torch.exp, tanh=torch.tanh, gelu=F.gelu, silu=F.silu, sigmoid=torch.sigmoid, softplus=F.softplus, exp2=torch.exp2)
differ = {name: (f(view) != f(view.contiguous())).sum().item() for name, f in functions.items()}
print("results of a view that differ from its copy's, of 10000:", differ)
assert differ.pop("exp") == differ.pop("tanh") == 0
assert all(differ.values()), "strides no longer change the bits of some of these"
PY
