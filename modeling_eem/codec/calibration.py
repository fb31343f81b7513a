"""The values of a model's activations on calibration text, and the int8 step that rounds them best."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .float_model_parts import FloatParts
from .tensor_grids import ACTIVATION_LIMIT

# Values of an activation that are kept to choose its step from.
SAMPLE_SIZE = 1 << 17
# Steps that are tried, as shares of the step at which nothing saturates.
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


class Activations:
    """Samples and largest magnitudes by name: `{l}.mixing_norm`, `{l}.up`, `residual`, …, as in `weights`."""

    def __init__(self) -> None:
        self.samples: dict[str, list[Tensor]] = defaultdict(list)
        self.largest: dict[str, float] = defaultdict(float)

    def record(self, name: str, values: Tensor) -> None:
        values = values.detach().flatten().float()
        if not values.isfinite().all():
            raise ValueError(f"{name}: activations are not finite on the calibration text: take another checkpoint.")
        self.largest[name] = max(self.largest[name], values.abs().max().item())
        step = max(1, len(values) * 8 // SAMPLE_SIZE)
        self.samples[name].append(values[::step].clone())

    def record_heads(self, name: str, values: Tensor, num_heads: int) -> None:
        """Record each head's features as `{name}.{head}`; without heads all features as `name`."""
        if not num_heads:
            self.record(name, values)
            return
        for head, part in enumerate(values.detach().chunk(num_heads, dim=-1)):
            self.record(f"{name}.{head}", part)

    def sample(self, name: str) -> Tensor:
        return torch.cat(self.samples[name])


@torch.no_grad()
def record_activations(parts: FloatParts, batches: Sequence[dict[str, Tensor | bool]]) -> Activations:
    """Run the float model on `batches` (arguments of its forward) and record what the integer model rounds."""
    activations = Activations()
    handles = []

    def outputs(module: nn.Module, name: str, num_heads: int = 0) -> None:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], values: Tensor) -> None:
            activations.record_heads(name, values, num_heads)

        handles.append(module.register_forward_hook(hook))

    def inputs(module: nn.Module, name: str, num_heads: int = 0) -> None:
        def hook(_module: nn.Module, values: tuple[Tensor, ...]) -> None:
            activations.record_heads(name, values[0], num_heads)

        handles.append(module.register_forward_pre_hook(hook))

    for index, layer in enumerate(parts.layers):
        inputs(layer.mixing_layernorm, "residual")
        outputs(layer.mixing_layernorm, f"{index}.mixing_norm")
        if layer.mixing.in_proj is not None and layer.mixing.out_proj is not None:
            outputs(layer.mixing.in_proj, f"{index}.mixing_in", layer.mixing.num_heads)
            inputs(layer.mixing.out_proj, f"{index}.mixing_out", layer.mixing.num_heads)
        inputs(layer.mlp_layernorm, "residual")
        outputs(layer.mlp_layernorm, f"{index}.mlp_norm")
        outputs(layer.mlp.up_proj, f"{index}.up")
        inputs(layer.mlp.down_proj, f"{index}.down")
    inputs(parts.head, "residual")
    try:
        for batch in batches:
            parts.model(**batch, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return activations


def best_step(values: Tensor, lowest: int = -ACTIVATION_LIMIT, highest: int = ACTIVATION_LIMIT) -> float:
    """The step `s` from `SHARES` with the least squared error of `s * clip(rint(v / s), lowest, highest)`."""
    values = values.double()
    largest = values.abs().max().item()
    if largest == 0:
        return 1.0 / highest
    errors = {}
    for share in SHARES:
        step = share * largest / highest
        rounded = (values / step).round().clamp(lowest, highest) * step
        errors[step] = (rounded - values).square().mean().item()
    return min(errors, key=errors.__getitem__)
