#!/usr/bin/env bash
# Expected: the bias of a Linear is added where the product's sums are, as a BLAS or oneDNN can, so a Linear with a bias takes hardly
#   longer than one without. That holds for bfloat16 too, for which this CPU path exists.
# Happens: on a CPU the bias is first written to every row of the output, by a copy of its own, and the product is then added to it.
#   The copy does not get faster with the product: on a processor that multiplies bfloat16 by AMX it took as long as the product
#   (Linear(256, 1024) of 4,096 rows: 4.4 ms with a bias, 2.1 without). oneDNN's own linear of the same numbers makes no copy.
# Version: torch 2.13.0.
# Seen: copies of the size of the output: float32 with a bias 1, without 0; bfloat16 with a bias 1, without 0; oneDNN with a bias 0
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
python - <<'PY'
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

ROWS, OUTPUTS = 512, 1024


def copies(run):
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        run()
    sizes = [event.input_shapes[0] for event in seen.events() if event.name == "aten::copy_"]
    return sizes.count([ROWS, OUTPUTS])


found = {}
for dtype in (torch.float32, torch.bfloat16):
    x = torch.randn(ROWS, 256).to(dtype)
    for bias in (True, False):
        layer = nn.Linear(256, OUTPUTS, bias=bias).to(dtype)
        found[str(dtype), "with a bias" if bias else "without"] = copies(lambda: layer(x))
layer = nn.Linear(256, OUTPUTS)
x = torch.randn(ROWS, 256)
found["oneDNN", "with a bias"] = copies(
    lambda: torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")
)
print(found)
assert list(found.values()) == [1, 0, 1, 0, 0]
PY
