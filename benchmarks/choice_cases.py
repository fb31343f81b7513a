"""The measurements behind the constants of the fast paths: what each choice costs beside the one that was made."""

from collections.abc import Callable
from unittest.mock import patch

import torch
from paired import Figure, paired_ratios
from torch import Tensor, nn
from training_cases import DEVICE

from modeling_eem import mixing_masked_mixer
from modeling_eem.linear_masked_mixer import FEW_ROWS, few_rows_linear
from modeling_eem.mixing_masked_mixer import BLOCK_SIZE, MOST_SPLITS, token_mixing

LENGTH, ROWS, WIDTH = 512, 8, 256


def _mixing(constant: str, value: int, kernel_size: int) -> Callable[[], None]:
    """Forward and both gradients of one mixing, with a constant of the module set to `value`."""
    torch.manual_seed(0)
    shape = (1, LENGTH, LENGTH, kernel_size)
    weight = (torch.randn(shape, device=DEVICE) / (LENGTH * kernel_size) ** 0.5).requires_grad_()
    bias = torch.zeros(1, LENGTH, device=DEVICE, requires_grad=True)
    x = torch.randn(1, LENGTH, ROWS, WIDTH, device=DEVICE, requires_grad=True)
    upstream = torch.randn_like(x)

    def run() -> None:
        with patch.object(mixing_masked_mixer, constant, value):
            torch.autograd.grad(token_mixing(weight, bias, x, is_causal=True), (weight, bias, x), upstream)

    return run


def mixing_constants(repeats: int) -> list[Figure]:
    """Other block sizes, and other numbers of halvings of eight taps, over those the models use."""
    figures = []
    for constant, chosen, kernel_size, others, what in (
        ("BLOCK_SIZE", BLOCK_SIZE, 1, (32, 128, 256), "token mixing in blocks of {}, time over blocks of {}"),
        ("MOST_SPLITS", MOST_SPLITS, 8, (0, 1, 3), "mixing of 8 taps halved {} times, time over {} times"),
    ):
        for other in others:
            ours, theirs = (_mixing(constant, value, kernel_size) for value in (chosen, other))
            figures.append(Figure(what.format(other, chosen), paired_ratios(ours, theirs, repeats)))
    return figures


@torch.no_grad()
def few_rows(repeats: int) -> list[Figure]:
    """The linear layers of a small model, one after the other, for few rows: `nn.functional.linear` over ours.

    Together they are larger than the caches near a core, as in generation: it is reading them that takes the time.
    """
    shapes = [(1024, 256), (256, 1024)] * 8 + [(8000, 256)]
    weights = [torch.randn(shape, device=DEVICE) for shape in shapes]
    figures = []
    for num_rows in (1, 8, FEW_ROWS):
        inputs = {width: torch.randn(num_rows, width, device=DEVICE) for _, width in shapes}

        def ours(inputs: dict[int, Tensor] = inputs) -> None:
            for weight in weights:
                few_rows_linear(inputs[weight.shape[1]], weight, None)

        def theirs(inputs: dict[int, Tensor] = inputs) -> None:
            for weight in weights:
                nn.functional.linear(inputs[weight.shape[1]], weight)

        name = "row" if num_rows == 1 else "rows"
        ratios = paired_ratios(ours, theirs, 5 * repeats)
        figures.append(Figure(f"linear layers on {num_rows} {name}, speed over F.linear's", ratios))
    return figures


CASES = {"mixing-constants": mixing_constants, "few-rows": few_rows}
