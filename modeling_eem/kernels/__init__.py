"""Faster ways to the models' own numbers, by device; importing `modeling_eem` switches on those for a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from modeling_eem.models.mixing_masked_mixer import KERNELS

from . import cpu_linear, cpu_mixing

CPU_KERNELS = {
    "token_mixing": cpu_mixing.block_token_mixing,
    "linear": cpu_linear.onednn_linear,
    "activated_linear": cpu_linear.onednn_gelu_linear,
    "product": cpu_linear.onednn_product,
}


def use_kernels() -> None:
    """Let the models use all kernels that measured faster: those for a CPU."""
    KERNELS.update(CPU_KERNELS)


@contextmanager
def plain() -> Iterator[None]:
    """Run the models as they run without this package: kernels are tested and measured against that."""
    before = dict(KERNELS)
    KERNELS.clear()
    try:
        yield
    finally:
        KERNELS.update(before)


@contextmanager
def triton() -> Iterator[None]:
    """Token mixing on a GPU by `cuda.triangle_token_mixing`, which no GPU has timed yet; the rest is unchanged.

    Raises:
        ModuleNotFoundError: if PyTorch came without Triton, as its CPU builds do.
    """
    from . import cuda  # imports Triton

    def token_mixing(weight_HTTK: Tensor, bias_HT: Tensor, x_HTBE: Tensor, is_causal: bool) -> Tensor | None:
        y_HTBE = cuda.triangle_token_mixing(weight_HTTK, bias_HT, x_HTBE, is_causal)
        return cpu_mixing.block_token_mixing(weight_HTTK, bias_HT, x_HTBE, is_causal) if y_HTBE is None else y_HTBE

    before = dict(KERNELS)
    KERNELS["token_mixing"] = token_mixing
    try:
        yield
    finally:
        KERNELS.clear()
        KERNELS.update(before)


__all__ = ["plain", "triton", "use_kernels"]
