"""Where the time goes: what of it is in matrix products, how fast these run, and how fast all could be at the most."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from statistics import mean, median

from paired import matmul_peak, seconds
from part_cases import mixings
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile
from training_cases import DEVICE, compared_autoencoder, compared_mixers

from modeling_eem.report import Table
from modeling_eem.training.flops import counted_flops

RUNS = 5
# The operators that multiply matrices, as the profiler names them.
PRODUCTS = {
    "aten::mm",
    "aten::addmm",
    "aten::addmm_",
    "aten::bmm",
    "aten::baddbmm",
    "aten::cudnn_convolution",
    "aten::mkldnn_convolution",
    "aten::convolution_backward",
    "mkldnn::_linear_pointwise",
}


@dataclass(frozen=True)
class Profile:
    """Of one run: seconds in all, in products and in other operators, FLOPs of the products, the peak beside it."""

    what: str
    whose: str
    took: float
    in_products: float
    flops: float
    peak: float
    elsewhere: dict[str, float]

    @property
    def least(self) -> float:
        """Seconds if all products ran at the peak, and nothing else took time."""
        return self.flops / self.peak


def profiles() -> list[tuple[Profile, Profile]]:
    """Ours and the plain one of each comparison."""
    return [
        (profiled(what, "ours", ours), profiled(what, whose, theirs)) for what, ours, whose, theirs in _comparisons()
    ]


def _comparisons() -> Iterator[tuple[str, Callable[[], object], str, Callable[[], object]]]:
    for compared in chain(compared_mixers(), compared_autoencoder()):
        yield compared.what, compared.ours, "plain", compared.plain
    for length in (512, 1024):
        ways = mixings(length)
        yield f"token mixing alone, n = {length}", ways["ours"], "Conv1d", ways["Conv1d"]


def profiled(what: str, whose: str, run: Callable[[], object]) -> Profile:
    run()
    flops = counted_flops(run)
    is_gpu = DEVICE == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    before = matmul_peak()
    took = median(seconds(run) for _ in range(RUNS))
    with profile(activities=activities) as profiler:
        for _ in range(RUNS):
            run()
    peak = mean((before, matmul_peak()))

    def own_time(event: FunctionEventAvg) -> float:
        return (event.self_device_time_total if is_gpu else event.self_cpu_time_total) / 1e6 / RUNS

    # On a GPU the kernels are listed too; their time is already that of the operators that started them.
    operators = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]
    times = {event.key: own_time(event) for event in operators}
    in_products = sum(time for name, time in times.items() if name in PRODUCTS)
    elsewhere = {name: time for name, time in times.items() if name not in PRODUCTS and time > 0}
    return Profile(what, whose, took, in_products, flops, peak, elsewhere)


def profile_table(pairs: list[tuple[Profile, Profile]]) -> Table:
    rows = []
    for ours, theirs in pairs:
        for its in (ours, theirs):
            largest = sorted(its.elsewhere.items(), key=lambda item: -item[1])[:3]
            rows.append(
                (
                    its.what,
                    its.whose,
                    1e3 * its.took,
                    its.flops / 1e9,
                    1e3 * its.in_products,
                    its.flops / its.in_products / 1e9,
                    its.peak / 1e9,
                    ", ".join(f"{name.removeprefix('aten::')} {1e3 * time:.0f}" for name, time in largest),
                    theirs.took / its.took if its is ours else None,
                    theirs.took / its.least if its is ours else None,
                )
            )
    return Table(
        columns=(
            "what",
            "whose",
            "ms",
            "GFLOP",
            "ms in products",
            "GFLOP/s there",
            "peak",
            "ms elsewhere, the most",
            "ratio",
            "at most",
        ),
        rows=rows,
        title="Where the time goes",
        notes=(
            f"Medians of {RUNS} runs one after the other, not of pairs; where in them, by PyTorch's profiler in "
            "as many more. Products with what blocks hold beside a triangle, which is multiplied too.",
            "Peak: GFLOP/s of the machine's own matrix product before and after. At most: the ratio, if our products "
            "ran at the peak and nothing else took time.",
        ),
        formats={
            "ms": ".1f",
            "GFLOP": ".1f",
            "ms in products": ".1f",
            "GFLOP/s there": ".0f",
            "peak": ".0f",
            "ratio": ".2f",
            "at most": ".2f",
        },
    )
