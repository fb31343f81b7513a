#!/usr/bin/env bash
# Expected: np.sum and np.mean of a float32 array are the same in a jitted function and outside, to a few last bits.
# Happens: numba adds one number after another in float32, where NumPy adds pairwise. From 2^24 on small numbers are lost: the mean of
#   20 million losses is 3 % too low, and 20 million ones are 16,777,216. np.sum(x, dtype=np.float64) is right.
# Version: numba 0.68.1, numpy 2.4.6.
# Seen: sum of 20,000,000 ones 16777216.0; mean of losses in 0 … 10: numpy 5.000, jitted 4.867
. "$(dirname "$0")/_environment.sh"
packages numpy==2.4.6 numba==0.68.1
python - <<'PY'
import numba
import numpy as np


@numba.njit
def total(x):
    return np.sum(x)


@numba.njit
def mean(x):
    return np.mean(x)


ones = np.ones(20_000_000, dtype=np.float32)
losses = np.random.default_rng(0).random(20_000_000, dtype=np.float32) * 10
print(f"sum of {len(ones)} ones: numpy {np.sum(ones)}, jitted {total(ones)}")
print(f"mean of losses: numpy {np.mean(losses):.3f}, jitted {mean(losses):.3f}")
assert np.sum(ones) == len(ones) and abs(np.mean(losses) - 5) < 0.01
assert total(ones) == 2**24 and abs(mean(losses) - 5) > 0.1, "numba adds otherwise now"
PY
