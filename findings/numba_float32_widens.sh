#!/usr/bin/env bash
# Expected: x * 0.1 + 0.3 of a float32 array is float32 in numba as in numpy 2 (NEP 50: a Python number has no width).
# Happens: numba computes in float64 and returns a float64 array; written back to float32, half of the numbers differ.
# Version: numba 0.68.1, numpy 2.4.6.
# Seen: numpy float32, numba float64, 503 of 1000 differ after rounding back to float32
. "$(dirname "$0")/_environment.sh"
packages numpy==2.4.6 numba==0.68.1
python - <<'PY'
import numpy as np
from numba import njit


def affine(x):
    return x * 0.1 + 0.3


x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
plain, fast = affine(x), njit(affine)(x)
differ = np.count_nonzero(fast.astype(np.float32) != plain)
print(f"numpy {plain.dtype}, numba {fast.dtype}, {differ} of 1000 differ after rounding back to float32")
assert plain.dtype == np.float32 and fast.dtype == np.float64 and differ > 0
PY
