#!/usr/bin/env bash
# Expected: get_optimizer_state_dict (of torch.distributed.checkpoint.state_dict) reads an optimizer and leaves it as it is.
# Happens: of an optimizer that has made no step it first MAKES one, with gradients of 0 and learning rate 0, and the step stays. A checkpoint
#   of step 0 so changes the run: Adam's first real step counts as its second and is smaller, SGD with dampening dampens its
#   first gradient, and an optimizer whose learning rate is not in its param_groups moves the weights.
# Version: torch 2.13.0.
# Seen: first step of Adam with learning rate 1: -1.000 without, -0.744 after reading; SGD with dampening 0.9: -1.000 and -0.100;
#   an optimizer with weight decay and a learning rate of its own: weight 1.0 becomes 0.95 by reading
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
python - <<'PY'
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict


class Decay(torch.optim.Optimizer):
    """Keeps its learning rate as an attribute."""

    learning_rate = 0.5

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - self.learning_rate * 0.1).sub_(self.learning_rate * parameter.grad)


def first_step(make, is_read):
    """How far the first step moves a weight whose gradient is 1."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimizer = make(model.parameters())
    if is_read:
        get_optimizer_state_dict(model, optimizer)
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    return round(model.weight.item(), 3)


adam = [first_step(lambda p: torch.optim.Adam(p, lr=1.0), is_read) for is_read in (False, True)]
sgd = [first_step(lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, dampening=0.9), is_read) for is_read in (False, True)]
model = torch.nn.Linear(1, 1, bias=False)
torch.nn.init.ones_(model.weight)
get_optimizer_state_dict(model, Decay(model.parameters()))
moved = round(model.weight.item(), 3)
print("first step of Adam, without and after reading:", adam, "SGD with dampening:", sgd, "the weight 1.0 by reading alone:", moved)
assert adam[0] == sgd[0] == -1
assert adam[1] == -0.744 and sgd[1] == -0.1 and moved == 0.95, "reading leaves an optimizer as it is now"
PY
