#!/usr/bin/env bash
# Expected: x.to(torch.bfloat16).float() rounds x to bfloat16, compiled or not. Fake quantization is written like that.
# Happens: torch.compile (inductor) removes the way there and back: x comes out unrounded, and 1e6 survives a trip through
#   float16, which holds at most 65,504. float8 and integers are rounded. The option emulate_precision_casts rounds.
# Version: torch 2.13.0, backend inductor on a CPU; needs a C++ compiler.
# Seen: eager 0.333984375, compiled 0.3333333432674408; 1e6 through float16: eager inf, compiled 1000000.0
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6 setuptools==84.2.1
python - <<'PY'
import torch


def round_trip(x):
    return x.to(torch.bfloat16).to(torch.float32)


def half(x):
    return x.to(torch.float16).to(torch.float32)


x = torch.full((8,), 1 / 3)
eager, compiled = round_trip(x)[0].item(), torch.compile(round_trip)(x)[0].item()
big = torch.full((8,), 1e6)
eager_big, compiled_big = half(big)[0].item(), torch.compile(half)(big)[0].item()
torch._dynamo.reset()
asked = torch.compile(round_trip, options={"emulate_precision_casts": True})(x)[0].item()
print(f"1/3 through bfloat16: eager {eager}, compiled {compiled}, with emulate_precision_casts {asked}")
print(f"1e6 through float16: eager {eager_big}, compiled {compiled_big}")
assert eager == asked == 0.333984375 and eager_big == float("inf")
assert compiled == x[0].item() and compiled_big == 1e6, "torch.compile rounds now"
PY
