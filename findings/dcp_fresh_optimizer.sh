#!/usr/bin/env bash
# Expected: dcp.load into the state dict of a new model and a new Adam brings the saved moments, or raises because there is no place for them.
# Happens: a new optimizer's "state" is an empty dict, so nothing is loaded for it, and an empty dict is not missed. Weights and learning rate
#   come back, the moments and step counts do not: training goes on as after a restart. No warning. The state must be made first
#   (torch.distributed.checkpoint.state_dict.get_optimizer_state_dict makes it).
# Version: torch 2.13.0.
# Seen: saved: 2 parameters with moments, learning rate 0.5; loaded: 0 with moments, learning rate 0.5
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
python - 2>/dev/null <<'PY'
import torch
import torch.distributed.checkpoint as dcp


def make(learning_rate):
    model = torch.nn.Linear(2, 2)
    return model, torch.optim.Adam(model.parameters(), lr=learning_rate)


model, optimizer = make(0.5)
model(torch.ones(1, 2)).sum().backward()
optimizer.step()
dcp.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint_id="saved", no_dist=True)

new_model, new_optimizer = make(0.1)
state = {"model": new_model.state_dict(), "optimizer": new_optimizer.state_dict()}
dcp.load(state, checkpoint_id="saved", no_dist=True)
new_model.load_state_dict(state["model"])
new_optimizer.load_state_dict(state["optimizer"])
for name, one in (("saved", optimizer), ("loaded", new_optimizer)):
    print(f"{name}: {len(one.state)} parameters with moments, learning rate {one.param_groups[0]['lr']}")
assert torch.equal(new_model.weight, model.weight) and new_optimizer.param_groups[0]["lr"] == 0.5
assert len(optimizer.state) == 2 and len(new_optimizer.state) == 0, "the moments are loaded now"
PY
