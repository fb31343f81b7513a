"""The measurements behind the constants of the fast paths: what each choice costs beside the one that was made."""

from collections.abc import Callable
from unittest.mock import patch

import torch
from paired import Figure, paired_ratios
from torch import Tensor, nn
from training_cases import DEVICE, LENGTH, ROWS, WIDTH

from modeling_eem.kernels import cpu
from modeling_eem.kernels.cpu import BLOCK_SIZE, FEW_ROWS, MOST_SPLITS, block_token_mixing, few_rows_linear
from modeling_eem.models.mixing_masked_mixer import linear, product


def _mixing(constant: str, value: int, kernel_size: int) -> Callable[[], None]:
    """Forward and both gradients of one mixing, with a constant of the module set to `value`."""
    torch.manual_seed(0)
    shape = (1, LENGTH, LENGTH, kernel_size)
    weight = (torch.randn(shape, device=DEVICE) / (LENGTH * kernel_size) ** 0.5).requires_grad_()
    bias = torch.zeros(1, LENGTH, device=DEVICE, requires_grad=True)
    x = torch.randn(1, LENGTH, ROWS, WIDTH, device=DEVICE, requires_grad=True)
    upstream = torch.randn_like(x)

    def run() -> None:
        with patch.object(cpu, constant, value):
            torch.autograd.grad(block_token_mixing(weight, bias, x, is_causal=True), (weight, bias, x), upstream)

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
def linear_layers(repeats: int) -> list[Figure]:
    """The linear layers of a small model, one after the other: our speed over that of `nn.functional.linear`.

    Together they are larger than the caches near a core, as in generation, where it is reading them that takes the
    time. At the number of rows where ours changes its way, and at twice that, both ways are compared.
    """
    layers = [nn.Linear(*shape, bias=False, device=DEVICE) for shape in [(256, 1024), (1024, 256)] * 8 + [(256, 8000)]]

    def on_rows(num_rows: int, way: Callable[[nn.Linear, Tensor], Tensor]) -> Callable[[], None]:
        inputs = {width: torch.randn(num_rows, width, device=DEVICE) for width in (256, 1024)}

        def run() -> None:
            for layer in layers:
                way(layer, inputs[layer.in_features])

        return run

    ways = {
        "ours": linear,
        "F.linear's": lambda layer, x: nn.functional.linear(x, layer.weight),
        "in two halves": lambda layer, x: few_rows_linear(x, layer.weight, None),
        "oneDNN's": lambda layer, x: product(x, layer.weight),
    }
    compared = [("ours", "F.linear's", num_rows) for num_rows in (1, FEW_ROWS, 8 * FEW_ROWS, LENGTH)]
    compared += [("in two halves", "oneDNN's", num_rows) for num_rows in (FEW_ROWS, 2 * FEW_ROWS)]
    return [
        Figure(
            f"linear layers on {num_rows} row{'s' if num_rows > 1 else ''}, {one}, speed over {other}",
            paired_ratios(on_rows(num_rows, ways[one]), on_rows(num_rows, ways[other]), 5 * repeats),
        )
        for one, other, num_rows in compared
    ]


CASES = {"mixing-constants": mixing_constants, "linear-layers": linear_layers}
