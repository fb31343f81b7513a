#!/usr/bin/env bash
# Expected: what overflows in a cast to an 8-bit float becomes infinity, or NaN where the format has no infinity; that is how a cast to
#   float16 and to float8_e5m2 shows it.
# Happens: float8_e4m3fn turns everything above 448 into 448, INFINITY included (the format has NaN for it), while NaN stays NaN. A check
#   for finite numbers after the cast passes. float8_e4m3fnuz and float8_e5m2fnuz give NaN.
# Version: torch 2.13.0 on a CPU.
# Seen (infinity, 1e9): float16 inf inf; float8_e5m2 inf inf; float8_e4m3fn 448 448
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
python - <<'PY'
import torch

numbers = torch.tensor([float("inf"), 1e9])
names = ("float16", "float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2fnuz")
seen = {name: numbers.to(getattr(torch, name)).float().tolist() for name in names}
print("infinity and 1e9 become", seen)
assert seen["float16"] == seen["float8_e5m2"] == [float("inf")] * 2
assert seen["float8_e4m3fn"] == [448.0, 448.0], "the overflow shows now"
PY
