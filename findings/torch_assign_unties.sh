#!/usr/bin/env bash
# Expected: load_state_dict(..., assign=True) leaves a head that is tied to its embedding tied, or raises.
# Happens: each name gets a Parameter of its own, on the same memory. The model still gives the right outputs, but counts its weights
#   twice; AdamW decays them twice a step and steps twice, each time on its own part of the gradient; model.double() (or any other cast)
#   makes two separate weights, which then train apart. No warning.
# Version: torch 2.13.0.
# Seen: Parameters 1 (assign=False) and 2 (assign=True); a weight of 1.0 after one step of AdamW with lr * weight_decay = 0.05 and no
#   gradient 0.95 and 0.9025; after double() embedding and head in the same memory True and False
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0
python - <<'PY'
import torch


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))


first = Tied()
torch.nn.init.ones_(first.head.weight)
torch.save(first.state_dict(), "weights.pt")
ids = torch.arange(5)
seen = {}
for assign in (False, True):
    model = Tied()
    model.load_state_dict(torch.load("weights.pt"), assign=assign)
    assert torch.equal(model(ids), first(ids))
    count = len(list(model.parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    (0 * model(ids).sum()).backward()
    optimizer.step()
    weight = round(model.head.weight[0, 0].item(), 6)
    model.double()
    shared = model.head.weight.data_ptr() == model.embedding.weight.data_ptr()
    seen[assign] = (count, weight, shared)
    print(f"assign={assign}: {count} Parameters, 1.0 decays to {weight}, one memory after double(): {shared}")
assert seen[False] == (1, 0.95, True)
assert seen[True] == (2, 0.9025, False), "assign=True keeps weights tied now"
PY
