#!/usr/bin/env bash
# Expected: torch._int_mm multiplies int8 matrices into int32 exactly; integers have no rounding.
# Happens: on an x86-64 processor without VNNI (before about 2019, or ONEDNN_MAX_CPU_ISA=AVX2 on any) pairs of products
#   saturate at 16 bits: nearly every result is wrong, without a warning. With |weight| <= 63 it is exact.
# Version: torch 2.13.0 (oneDNN inside).
# Seen: wrong results of 4096: 0 with all instructions (with VNNI), 4096 with AVX2; 0 with AVX2 and weights up to 63
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
cat > product.py <<'PY'
import sys

import torch

generator = torch.Generator().manual_seed(0)
largest = int(sys.argv[1])
a = torch.randint(-128, 128, (64, 1024), generator=generator).to(torch.int8)
b = torch.randint(-largest, largest + 1, (1024, 64), generator=generator).to(torch.int8)
print((torch._int_mm(a, b).long() != a.long() @ b.long()).sum().item())
PY
plain=$(python product.py 127)
avx2=$(ONEDNN_MAX_CPU_ISA=AVX2 python product.py 127)
small=$(ONEDNN_MAX_CPU_ISA=AVX2 python product.py 63)
echo "wrong of 4096: $plain here, $avx2 with AVX2, $small with AVX2 and weights up to 63"
[ "$avx2" -gt 0 ] && [ "$small" -eq 0 ]
