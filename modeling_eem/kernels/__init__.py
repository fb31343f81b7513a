"""Faster ways to the models' own numbers, one file a device; importing `modeling_eem` puts them in their place."""

from collections.abc import Iterator
from contextlib import contextmanager

from modeling_eem.models.mixing_masked_mixer import KERNELS

from . import cpu

CPU_KERNELS = {
    "token_mixing": cpu.block_token_mixing,
    "linear": cpu.onednn_linear,
    "product": cpu.onednn_product,
}


def use_kernels() -> None:
    """Let the models use all kernels."""
    KERNELS.update(CPU_KERNELS)


@contextmanager
def plain() -> Iterator[None]:
    """The models as they run without this package: what kernels are tested and measured against."""
    before = dict(KERNELS)
    KERNELS.clear()
    try:
        yield
    finally:
        KERNELS.update(before)


__all__ = ["CPU_KERNELS", "plain", "use_kernels"]
