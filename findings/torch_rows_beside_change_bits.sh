#!/usr/bin/env bash
# Expected: a row's product with a matrix does not depend on how many rows are beside it in the batch.
# Happens: F.linear in float32 gives a row alone, one of two or three, and one of more rows other last bits: MKL adds in another order.
#   Token by token, with a cache, a text has other logits than in one pass, and other ones in a batch of two than in a batch of four;
#   greedy decoding may part where two tokens are nearly alike.
# Version: torch 2.13.0 on an x86-64 CPU (its MKL).
# Seen (outputs of 512 that differ from those among 256 rows): alone 473, of 2 and 3 rows 466, of 4, 16 and 64 rows 0
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
python - <<'PY'
import torch
import torch.nn.functional as F

generator = torch.Generator().manual_seed(0)
weight, rows = torch.randn(512, 768, generator=generator), torch.randn(256, 768, generator=generator)
many = F.linear(rows, weight)[0]
differ = {count: (F.linear(rows[:count], weight)[0] != many).sum().item() for count in (1, 2, 3, 4, 16, 64)}
print("outputs of the first row, of 512, that differ from those among 256 rows, by number of rows:", differ)
assert differ[1], "a row's bits no longer depend on the rows beside it"
PY
