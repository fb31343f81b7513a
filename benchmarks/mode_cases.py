"""What torch.compile and bfloat16 autocast make of a training step, and what it holds."""

from collections.abc import Callable

import torch
from figures import Figure
from paired import paired_ratios, peak_megabytes
from plain import PlainMixer, load_mixer
from torch import nn
from training_cases import (
    DEVICE,
    LAYERS,
    LENGTH,
    VOCABULARY,
    WIDTH,
    check_equal,
    llama_of,
    mixer,
    ours_step,
    random_rows,
    step_of,
)

from modeling_eem.kernels.cpu_linear import has_bfloat16


def compiled(repeats: int) -> list[Figure]:
    """A step of the flat mixer, with `torch.compile` and without."""
    input_ids = random_rows()
    plain, model = mixer(), mixer()
    compiled_model = torch.compile(model, fullgraph=True)
    step = step_of(model, lambda: compiled_model(input_ids=input_ids, labels=input_ids, use_cache=False).loss)
    ratios = paired_ratios(step, ours_step(plain, input_ids), repeats)
    return [Figure("a training step with torch.compile, speed over one without", ratios)]


def bfloat16(repeats: int) -> list[Figure]:
    """A step under bfloat16 autocast: against our own in float32, the plain one in both, and Llama's in bfloat16."""
    input_ids = random_rows()
    plain = PlainMixer(VOCABULARY, WIDTH, LENGTH, LAYERS).to(DEVICE)
    ours = mixer()
    load_mixer(plain, ours)
    with torch.no_grad():
        loss = ours(input_ids=input_ids, labels=input_ids).loss.item()
        check_equal(loss, plain(input_ids).item(), "mixer")
    llama = llama_of(ours.num_parameters())
    step = _low_step(ours, lambda: ours(input_ids=input_ids, labels=input_ids, use_cache=False).loss)
    others = {
        "float32's": ours_step(mixer(), input_ids),
        "the plain one's in float32": step_of(plain, lambda: plain(input_ids)),
        "the plain one's, both in bfloat16": _low_step(plain, lambda: plain(input_ids)),
        "Llama's, both in bfloat16": _low_step(
            llama, lambda: llama(input_ids=input_ids, labels=input_ids, use_cache=False).loss
        ),
    }
    what = "a training step under bfloat16 autocast, speed over"
    # 15 % below 2.62, 4.23, 2.92 and 4.29 with AMX, and 2.20 with AVX512-BF16.
    amx = {"float32's": 2.2, "the plain one's in float32": 3.6}
    amx |= {"the plain one's, both in bfloat16": 2.5, "Llama's, both in bfloat16": 3.6}
    if DEVICE == "cpu" and torch.cpu._is_amx_tile_supported():
        floors = amx
    else:
        floors = {"float32's": 1.9} if DEVICE == "cuda" or has_bfloat16() else {}
    figures = [
        Figure(f"{what} {name}", paired_ratios(step, other, repeats), floors.get(name))
        for name, other in others.items()
    ]
    if not floors:
        figures[0].notes.append("no floor for bfloat16: the processor has no instructions for it, and loses time.")
    return figures


def _low_step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    def low() -> torch.Tensor:
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            return loss()

    return step_of(model, low)


def step_memory(repeats: int) -> list[Figure]:
    """What a step holds at its highest beside weights, gradients and AdamW's moments, over the plain one's."""
    setup = (
        "from training_cases import *\ninput_ids = random_rows()\n"
        "model = {model}\nstep = step_of(model, lambda: {loss})\nstep()"
    )
    ours, plain = (
        peak_megabytes("step()", setup.format(model=model, loss=loss))
        for model, loss in (
            ("mixer()", "model(input_ids=input_ids, labels=input_ids, use_cache=False).loss"),
            ("PlainMixer(VOCABULARY, WIDTH, LENGTH, LAYERS).to(DEVICE)", "model(input_ids)"),
        )
    )
    note = f"a training step's memory: {ours:.0f} MB, the plain one's {plain:.0f} MB"
    return [Figure("peak memory of a training step, over the plain one's", [ours / plain], 0.5, True, notes=[note])]


CASES = {"compile": compiled, "bfloat16": bfloat16, "step-memory": step_memory}
