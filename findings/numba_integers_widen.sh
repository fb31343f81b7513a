#!/usr/bin/env bash
# Expected: numba.njit computes what the same lines compute in numpy: uint32 and int8 wrap around at their own width.
# Happens: in a loop every integer is widened to 64 bits, so a 32-bit hash grows past 32 bits and an int8 product does not
#   wrap; as an array expression the same product does wrap; a uint64 state divided by int64 counts in a loop turns float64.
# Version: numba 0.68.1, numpy 2.4.6.
# Seen: FNV-1a of "hello world": numpy 3582672807, numba 2168278929747165095; int8 100 * 100: numpy 16, loop 10000, array 16;
#   the coder's state: a float
. "$(dirname "$0")/_environment.sh"
packages numpy==2.4.6 numba==0.68.1
python - <<'PY'
import warnings

import numpy as np
from numba import njit

warnings.simplefilter("ignore")


@njit
def fnv(octets):
    value = np.uint32(2166136261)
    for octet in octets:
        value = (value ^ octet) * np.uint32(16777619)
    return value


@njit
def square(a, out):
    for i in range(len(a)):
        out[i] = a[i] * a[i]


@njit
def square_array(a):
    return a * a


@njit
def step(state, count):
    current = state[0]
    for i in range(len(count)):
        current = current // count[i] * np.uint64(4096)
    return current


octets = np.frombuffer(b"hello world", np.uint8)
a = np.array([100], np.int8)
loop, plain = np.zeros(1, np.int64), np.zeros(1, np.int64)
square(a, loop)
square.py_func(a, plain)
state = step(np.array([2**60 + 12345], np.uint64), np.array([7], np.int64))
print("FNV-1a: numpy", int(fnv.py_func(octets)), "numba", fnv(octets))
print("int8 100 * 100: numpy", plain[0], "numba's loop", loop[0], "numba's array", square_array(a)[0])
print("coder's step:", state, "exact:", (2**60 + 12345) // 7 * 4096 % 2**64)
assert int(fnv.py_func(octets)) == 3582672807 and plain[0] == 16
assert fnv(octets) != 3582672807 and loop[0] == 10000 and square_array(a)[0] == 16 and isinstance(state, float)
PY
