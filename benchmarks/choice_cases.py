"""The measurements behind the constants of the fast paths: what each choice costs beside the one that was made."""

from collections.abc import Callable
from unittest.mock import patch

import torch
from figures import Figure
from paired import paired_ratios
from torch import Tensor, nn
from training_cases import DEVICE, LENGTH, ROWS, WIDTH, mixer, random_rows
from transformers import PreTrainedModel

from modeling_eem import kernels
from modeling_eem.kernels import cpu_mixing
from modeling_eem.kernels.cpu_linear import FEW_ROWS, few_rows_linear
from modeling_eem.kernels.cpu_mixing import BLOCK_SIZE, ROW_BLOCK_SIZE, block_token_mixing
from modeling_eem.models.mixing_masked_mixer import linear, product


def _mixing(name: str, block_size: int, kernel_size: int) -> Callable[[], None]:
    """Forward and both gradients of one mixing, with another value of a constant."""
    torch.manual_seed(0)
    weight = (torch.randn(1, LENGTH, LENGTH, kernel_size, device=DEVICE) / LENGTH**0.5).requires_grad_()
    bias = torch.zeros(1, LENGTH, device=DEVICE, requires_grad=True)
    x = torch.randn(1, LENGTH, ROWS, WIDTH, device=DEVICE, requires_grad=True)
    upstream = torch.randn_like(x)

    def run() -> None:
        with patch.object(cpu_mixing, name, block_size):
            torch.autograd.grad(block_token_mixing(weight, bias, x, is_causal=True), (weight, bias, x), upstream)

    return run


def mixing_constants(repeats: int) -> list[Figure]:
    """Other block sizes over the one the kernel uses."""
    constants = {
        "ROW_BLOCK_SIZE": (ROW_BLOCK_SIZE, (64, 256), 1, "rows"),
        "BLOCK_SIZE": (BLOCK_SIZE, (32, 128), 8, "columns, k = 8"),
    }
    return [
        Figure(
            f"token mixing in blocks of {other} {what}, time over blocks of {ours}",
            paired_ratios(_mixing(name, ours, taps), _mixing(name, other, taps), repeats),
        )
        for name, (ours, others, taps, what) in constants.items()
        for other in others
    ]


def _in_plain_pytorch(run: Callable[[], object]) -> Callable[[], object]:
    def plainly() -> object:
        with kernels.plain():
            return run()

    return plainly


def kernels_against_plain(repeats: int) -> list[Figure]:
    """A training step and generation with the kernels, over the models as they run without this package."""
    steps = {"flat": {}, "4 heads": {"num_heads": 4}, "k = 4": {"kernel_size": 4}}
    figures = []
    for name, changes in steps.items():
        model = mixer(**changes).train()
        rows = random_rows()

        def step(model: PreTrainedModel = model, rows: Tensor = rows) -> None:
            model(input_ids=rows, labels=rows).loss.backward()

        figures.append(
            Figure(f"training step, {name}, speed over plain", paired_ratios(step, _in_plain_pytorch(step), repeats))
        )
    model = mixer().eval()
    for batch_size in (1, 32):
        prompt = random_rows(LENGTH // 2, batch_size)

        def generate(prompt: Tensor = prompt) -> Tensor:
            return model.generate(prompt, max_new_tokens=64, min_new_tokens=64, do_sample=False)

        name = f"generation, batch {batch_size}, speed over plain"
        figures.append(Figure(name, paired_ratios(generate, _in_plain_pytorch(generate), repeats)))
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


CASES = {"kernels": kernels_against_plain, "mixing-constants": mixing_constants, "linear-layers": linear_layers}
