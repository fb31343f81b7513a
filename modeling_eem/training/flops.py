"""What a training step costs: floating-point operations, counted as they are run."""

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel


def _addmm_flops(_out_shape: torch.Size, a_shape: torch.Size, b_shape: torch.Size, **_kwargs: object) -> int:
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


def training_flops(model: PreTrainedModel, length: int) -> int:
    """FLOPs of forward and backward for one row of `length` tokens: two for each multiply-add of a matrix product.

    Everything that runs is counted, and nothing else: skipped blocks of a triangle cost nothing, the head in chunks
    costs what it costs. Parameters, their gradients and the random generator are left as they were.
    """
    device = next(model.parameters()).device
    input_ids = torch.zeros(1, length, dtype=torch.long, device=device)
    was_training = model.training
    model.train()
    # The counter knows addmm, not the in-place form that writes a product into a slice.
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm_flops})
    with torch.random.fork_rng(devices=[]), counter:
        loss = model(input_ids=input_ids, labels=input_ids).loss
        torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    model.train(was_training)
    return counter.get_total_flops()
