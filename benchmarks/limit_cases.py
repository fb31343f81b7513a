"""How fast a training step could be, if each of its products ran in the fastest way PyTorch has for it here.

The machine's peak is that of large squares. What a step multiplies is smaller, and no library multiplies it at that
speed; this replays the products of a step one by one, as they lie in memory, and times them by each library.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from figures import Figure
from paired import seconds
from profiles import profiled
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from training_cases import DEVICE, compared_mixers

from modeling_eem.kernels.cpu_linear import HAS_ONEDNN
from modeling_eem.models.mixing_masked_mixer import product
from modeling_eem.training.flops import counted_flops


@dataclass(frozen=True)
class Product:
    """`a b`, or with `adds` `out += a b`: shapes and strides."""

    a: tuple[torch.Size, tuple[int, ...]]
    b: tuple[torch.Size, tuple[int, ...]]
    adds: bool

    @property
    def flops(self) -> int:
        (num_rows, num_inner), num_columns = self.a[0], self.b[0][1]
        return 2 * num_rows * num_inner * num_columns

    def least_seconds(self, repeats: int) -> float:
        """Median time in the fastest way, on memory that is there already."""
        a, b = (torch.empty_strided(*layout, device=DEVICE).normal_() for layout in (self.a, self.b))
        out = torch.zeros(len(a), b.shape[1], device=DEVICE)
        if self.adds:
            ways = (lambda: out.addmm_(a, b), lambda: out.add_(product(a, b.T)))
        else:
            ways = (lambda: torch.mm(a, b, out=out), lambda: product(a, b.T))
        times = [[seconds(way) for way in ways] for _ in range(repeats + 1)][1:]
        return min(median(of_way) for of_way in zip(*times))


class _Recorder(TorchDispatchMode):
    """Counts the matrix products of what runs under it."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.mm.default:
            self._count(args[0], args[1], adds=False)
        elif func in (torch.ops.aten.addmm_.default, torch.ops.aten.addmm.default):
            self._count(args[1], args[2], adds=kwargs.get("beta", 1) != 0)
        elif HAS_ONEDNN and func is torch.ops.mkldnn._linear_pointwise.default:
            self._count(args[0], args[1].T, adds=False)
        return func(*args, **kwargs)

    def _count(self, a: Tensor, b: Tensor, adds: bool) -> None:
        self.products[Product((a.shape, a.stride()), (b.shape, b.stride()), adds)] += 1


def products_of(run: Callable[[], object]) -> Counter[Product]:
    """The products of a run; AssertionError if they are not all of its FLOPs."""
    with _Recorder() as recorder:
        run()
    found, expected = (sum(n * one.flops for one, n in recorder.products.items()), counted_flops(run))
    if found != expected:
        raise AssertionError(f"{found} FLOPs were found in products, {expected} were run")
    return recorder.products


def step_limits(repeats: int) -> list[Figure]:
    """Our training steps over the least they could take: a ratio to anything else could be so many times larger."""
    figures = []
    for compared in compared_mixers():
        profile = profiled(compared.what, "ours", compared.ours)
        steps = [seconds(compared.ours) for _ in range(repeats)]
        products = products_of(compared.ours)
        with torch.no_grad():
            least = sum(n * one.least_seconds(repeats) for one, n in products.items())
        elsewhere = profile.took - profile.in_products
        speed = sum(n * one.flops for one, n in products.items()) / least
        note = (
            f"The least of {compared.what}: its products one by one, each in the fastest way of PyTorch's libraries, "
            f"{least:.3f} s ({speed / 1e9:.0f} GFLOP/s) where they take {profile.in_products:.3f} s in the step; and "
            f"{elsewhere:.3f} s for all else."
        )
        what = f"{compared.what}, our training step, time over the least it could take"
        figures.append(Figure(what, [step / (elsewhere + least) for step in steps], notes=[note]))
    return figures


CASES = {"step-limits": step_limits}
