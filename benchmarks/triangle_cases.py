"""How fast a triangle can be multiplied here: the products of a token mixing in several ways, and nothing beside them.

A mixing needs three products with the lower triangle of its weights W: `W x`, `W^T g` and, as W's gradient, the
triangle of `g x^T`. The whole square is twice the work, and what Conv1d does: how much faster the triangle is than
the square is the most that token mixing can be ahead of Conv1d, whatever else both do.
"""

from collections.abc import Callable
from statistics import median

import torch
from figures import Figure
from paired import seconds
from torch import Tensor
from training_cases import DEVICE

from modeling_eem.kernels.cpu_mixing import BLOCK_SIZE, ROW_BLOCK_SIZE
from modeling_eem.models.mixing_masked_mixer import product

WIDTH = 8 * 512  # columns: 8 rows of d = 512
Product = Callable[[Tensor, Tensor, Tensor, Tensor, str], Tensor]


def by_columns(weight_TT: Tensor, x_TF: Tensor, grad_TF: Tensor, out: Tensor, kind: str) -> Tensor:
    """Blocks of columns of W, or of W^T, added up in place: how `block_token_mixing` does it with taps."""
    for start in range(0, len(weight_TT), BLOCK_SIZE):
        block, seeing, seen = _spans(start, BLOCK_SIZE)
        piece = (block, seen) if kind == "W^T g" else (seeing, block)
        _add_piece(weight_TT, x_TF, grad_TF, out, kind, *piece)
    return out


def by_rows(weight_TT: Tensor, x_TF: Tensor, grad_TF: Tensor, out: Tensor, kind: str) -> Tensor:
    """Blocks of rows of the result, each whole from one product of oneDNN's: `block_token_mixing` without taps."""
    for start in range(0, len(weight_TT), ROW_BLOCK_SIZE):
        block, seeing, seen = _spans(start, ROW_BLOCK_SIZE)
        if kind == "W x":
            out[block] = product(weight_TT[block, seen], x_TF[seen].T)
        elif kind == "W^T g":
            out[block] = product(weight_TT[seeing, block].T, grad_TF[seeing].T)
        else:
            out[block, seen] = product(grad_TF[block], x_TF[seen])
    return out


def by_halves(weight_TT: Tensor, x_TF: Tensor, grad_TF: Tensor, out: Tensor, kind: str) -> Tensor:
    """The square below the diagonal, added in place; the same for both halves of the diagonal, down to one block."""

    def go_on(start: int, stop: int) -> None:
        middle = (start + stop) // 2
        piece = (slice(middle, stop), slice(start, middle))
        if stop - start <= BLOCK_SIZE:
            piece = (slice(start, stop), slice(start, stop))
        else:
            go_on(start, middle)
            go_on(middle, stop)
        _add_piece(weight_TT, x_TF, grad_TF, out, kind, *piece)

    go_on(0, len(weight_TT))
    return out


def _add_piece(
    weight_TT: Tensor, x_TF: Tensor, grad_TF: Tensor, out: Tensor, kind: str, rows: slice, columns: slice
) -> None:
    """What one piece of W adds to a product in place; of its own gradient it is all there is."""
    if kind == "W x":
        out[rows].addmm_(weight_TT[rows, columns], x_TF[columns])
    elif kind == "W^T g":
        out[columns].addmm_(weight_TT[rows, columns].T, grad_TF[rows])
    else:
        out[rows, columns].addmm_(grad_TF[rows], x_TF[columns].T, beta=0)


def whole(weight_TT: Tensor, x_TF: Tensor, grad_TF: Tensor, out: Tensor, kind: str) -> Tensor:
    """The whole square, zeros too, by oneDNN: what Conv1d comes down to."""
    if kind == "W x":
        return product(weight_TT, x_TF.T)
    if kind == "W^T g":
        return product(weight_TT.T, grad_TF.T)
    return product(grad_TF, x_TF)


def _spans(start: int, size: int) -> tuple[slice, slice, slice]:
    return slice(start, start + size), slice(start, None), slice(0, start + size)


WAYS = {
    by_columns: f"in blocks of {BLOCK_SIZE} columns, as here with taps",
    by_rows: f"in blocks of {ROW_BLOCK_SIZE} rows by oneDNN, as here",
    by_halves: "halved again and again",
}
KINDS = ("W x", "W^T g", "g x^T")


@torch.no_grad()
def triangle_products(repeats: int) -> list[Figure]:
    """All three products in each way, and each of the three in its fastest way, over the whole square's."""
    figures = []
    for length in (512, 1024):
        weight_TT = torch.randn(length, length, device=DEVICE).tril()
        x_TF, grad_TF = torch.randn(2, length, WIDTH, device=DEVICE)
        outs = {kind: torch.zeros(length, length if kind == "g x^T" else WIDTH, device=DEVICE) for kind in KINDS}
        took: dict[Product, dict[str, list[float]]] = {way: {kind: [] for kind in KINDS} for way in (whole, *WAYS)}
        for _ in range(3 * repeats + 1):
            for way, times in took.items():
                for kind, out in outs.items():
                    arguments = weight_TT, x_TF, grad_TF, out, kind
                    times[kind].append(seconds(lambda way=way, arguments=arguments: way(*arguments)))
        fastest = {kind: min((took[way][kind] for way in WAYS), key=median) for kind in KINDS}
        squares = _totals(took[whole])
        compared = [(name, took[way]) for way, name in WAYS.items()] + [("each in its fastest way", fastest)]
        for name, times in compared:
            what = f"products of a triangle, n = {length}, {name}, speed over the whole square's"
            figures.append(Figure(what, [square / ours for square, ours in zip(squares, _totals(times))]))
    return figures


def _totals(times: dict[str, list[float]]) -> list[float]:
    """Of all kinds together, without the first round, which warms up."""
    return [sum(round_) for round_ in zip(*times.values())][1:]


CASES = {"triangle-products": triangle_products}
