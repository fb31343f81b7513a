"""Entropies mapped to [0, 1], to weigh losses with."""

import torch
from torch import Tensor


def min_max_normalize(values_N: Tensor, segments_N: Tensor) -> Tensor:
    """Each segment's values mapped to [0, 1] by its own least and largest; a constant segment gives 0."""
    _, inverse, sizes = segments_N.unique(return_inverse=True, return_counts=True)
    least, largest = (
        values_N.new_empty(len(sizes)).scatter_reduce(0, inverse, values_N, reduce, include_self=False)
        for reduce in ("amin", "amax")
    )
    span = (largest - least)[inverse]
    return torch.where(span > 0, (values_N - least[inverse]) / span.clamp(min=torch.finfo(span.dtype).tiny), 0.0)
