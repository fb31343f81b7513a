#!/usr/bin/env bash
# Expected: torch.stack([x]) and torch.cat([x]) of one tensor cost nothing: the values are in place already, and indexing with None
#   gives the same shape as a view.
# Happens: both copy. A loop over heads, taps or layers that ends in torch.stack pays a whole copy where there is one of them.
# Version: torch 2.13.0.
# Seen: stack and cat of one tensor have memory of their own; x[None] shares it
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
python - <<'PY'
import torch

x = torch.randn(1000, 1000)
shares = {
    name: made.data_ptr() == x.data_ptr()
    for name, made in (("stack", torch.stack([x])), ("cat", torch.cat([x])), ("x[None]", x[None]))
}
print("shares the memory of its one tensor:", shares)
assert shares == {"stack": False, "cat": False, "x[None]": True}
PY
