"""What torch.compile and bfloat16 autocast make of a training step; nothing is promised, all is told."""

import torch
from figures import Figure
from paired import paired_ratios
from training_cases import DEVICE, mixer, ours_step, random_rows, step_of


def compiled(repeats: int) -> list[Figure]:
    """A step of the flat mixer, with `torch.compile` and without."""
    input_ids = random_rows()
    plain, model = mixer(), mixer()
    compiled_model = torch.compile(model, fullgraph=True)
    step = step_of(model, lambda: compiled_model(input_ids=input_ids, labels=input_ids, use_cache=False).loss)
    ratios = paired_ratios(step, ours_step(plain, input_ids), repeats)
    return [Figure("a training step with torch.compile, speed over one without", ratios)]


def bfloat16(repeats: int) -> list[Figure]:
    """A step under bfloat16 autocast, and in float32."""
    input_ids = random_rows()
    plain, model = mixer(), mixer()

    def loss() -> torch.Tensor:
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            return model(input_ids=input_ids, labels=input_ids, use_cache=False).loss

    ratios = paired_ratios(step_of(model, loss), ours_step(plain, input_ids), repeats)
    return [Figure("a training step under bfloat16 autocast, speed over float32's", ratios)]


CASES = {"compile": compiled, "bfloat16": bfloat16}
