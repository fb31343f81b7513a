"""What storing a code in few bits costs, and what rounding any one layer does.

Every bit count is the size of real bytes: codes are packed, unpacked, and decoded from the unpacked integers.
Source: Badger & Neligeorge 2025, quantization of the embedding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from modeling_eem.bits import CodeLength
from modeling_eem.data.collator import CausalCollator
from modeling_eem.data.rows import Row
from modeling_eem.evaluation.code_length import Advance, by_document, row_codes, row_nats, window_of
from modeling_eem.loading import quiet_bitsandbytes
from modeling_eem.models.bottleneck_eem import Bottleneck
from modeling_eem.models.quantization_eem import CODE_FORMATS, CodeFormat, pack_bits, unpack_bits

UNROUNDED, PROBE, PROBE_UP = "float32", "int8 probe", "int8 probe, up too"
SWEEP_FORMATS = ("float8_e4m3fn", "float8_e5m2")
SWEEP_PARTS = ("activations", "weights")
_LARGEST = 127  # the largest int8
_Layer = nn.Linear | nn.Embedding | Conv1D


@dataclass(frozen=True)
class StoredCodes:
    """The codes of rows as a file would hold them.

    Attributes:
        code_dtype: a name of `CODE_FORMATS`.
        num_codes, code_size: how many codes there are, and numbers in each.
        packed: the integers of all codes, one after another, `bits` bits each.
        scales: a float32 a code, in a format that has scales.
    """

    code_dtype: str
    num_codes: int
    code_size: int
    packed: bytes
    scales: bytes

    @property
    def num_bits(self) -> int:
        """Bits of codes and scales; at most seven of them fill up the last byte."""
        return 8 * (len(self.packed) + len(self.scales))


def store_codes(codes_NP: Tensor, code_dtype: str) -> StoredCodes:
    """Codes as bytes in a format of `CODE_FORMATS`; ValueError for another format."""
    code_format = CODE_FORMATS.get(code_dtype)
    if code_format is None:
        raise ValueError(f"a code cannot be stored in {code_dtype!r}: choose one of {', '.join(CODE_FORMATS)}.")
    integers_NP, scale_N1 = code_format.encode(codes_NP.detach().float().cpu())
    scales = b"" if scale_N1 is None else scale_N1.float().numpy().tobytes()
    num_codes, code_size = codes_NP.shape
    if 8 * len(scales) != num_codes * code_format.scale_bits:
        raise ValueError(f"{code_dtype!r} says scale_bits {code_format.scale_bits}; its scale is stored in 32 bits.")
    return StoredCodes(code_dtype, num_codes, code_size, pack_bits(integers_NP, code_format.bits), scales)


def load_codes(stored: StoredCodes) -> Tensor:
    """The codes `[N, P]` in float32, decoded from the bytes alone."""
    code_format = CODE_FORMATS[stored.code_dtype]
    num_values = stored.num_codes * stored.code_size
    integers_NP = unpack_bits(stored.packed, code_format.bits, num_values).view(stored.num_codes, stored.code_size)
    scale_N1 = torch.frombuffer(bytearray(stored.scales), dtype=torch.float32)[:, None] if stored.scales else None
    return code_format.decode(integers_NP, scale_N1)


def _bitsandbytes() -> ModuleType:
    """bitsandbytes, imported when it is needed."""
    with quiet_bitsandbytes():
        import bitsandbytes
        import bitsandbytes.functional
    return bitsandbytes


class Int8Linear(nn.Module):
    """LLM.int8() of a Linear, written out: rows of the input and of the weight as int8, scaled by their largest value.

        y = (q_x · q_W) s_x s_W / 127² + b

    For a CPU, where bitsandbytes' own layers do not round the input. Source: Dettmers et al. 2022.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight_DP, self.scale_D, _ = _bitsandbytes().functional.int8_vectorwise_quant(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, x_BP: Tensor) -> Tensor:
        x_BP, scale_B, _ = _bitsandbytes().functional.int8_vectorwise_quant(x_BP)
        # Sums of products below 2**14 are exact in float64, as in the int32 of a GPU.
        y_BD = x_BP.double() @ self.weight_DP.double().T
        y_BD = (y_BD * scale_B[:, None].double() * self.scale_D.double() / _LARGEST**2).float()
        return y_BD if self.bias is None else y_BD + self.bias


def int8_linear(linear: nn.Linear) -> nn.Module:
    """A Linear in LLM.int8() without outliers: bitsandbytes' layer on a GPU, the same arithmetic on a CPU."""
    if linear.weight.device.type == "cpu":
        return Int8Linear(linear)
    has_bias = linear.bias is not None
    quantized = _bitsandbytes().nn.Linear8bitLt(
        linear.in_features, linear.out_features, bias=has_bias, has_fp16_weights=False, threshold=0.0
    )
    quantized.load_state_dict({name: value.detach().cpu() for name, value in linear.state_dict().items()})
    return quantized.to(linear.weight.device)


def int8_probe(codes_NP: Tensor) -> Tensor:
    """Codes after an identity Linear in LLM.int8(): only the codes are rounded, the identity is exact."""
    identity = nn.Linear(codes_NP.shape[1], codes_NP.shape[1], bias=False, device=codes_NP.device)
    nn.init.eye_(identity.weight)
    return int8_linear(identity)(codes_NP).float()


@dataclass(frozen=True)
class FormatCost:
    """What text costs with the code in one format.

    Attributes:
        code_format: a name of `CODE_FORMATS`, or one of the three constants above.
        bits_a_code: bits of one row's code, including the scale, measured from bytes.
        length: the code length of all rows.
        by_document: document → its cross-entropy in nats, and its scored tokens.
    """

    code_format: str
    bits_a_code: float
    length: CodeLength
    by_document: Mapping[int, tuple[float, int]]


def measure_formats(
    model: PreTrainedModel,
    rows: Sequence[Row],
    collator: CausalCollator,
    batch_size: int = 16,
    advance: Advance | None = None,
) -> list[FormatCost]:
    """Loss and bits with the code unrounded, in each of `CODE_FORMATS`, and through the LLM.int8() probe.

    The last measurement, with `up` in LLM.int8() too, is left out for a model without `up`.
    """
    bottleneck = find_bottleneck(model)
    costs = []

    def add(name: str, num_bits: int, codes_NP: Tensor) -> None:
        bits_a_code = num_bits / len(rows)
        nats = row_nats(model, rows, collator, batch_size, codes_NP, advance)
        windows = [window_of(row, value, bits_a_code, collator.max_length) for row, value in zip(rows, nats)]
        lengths = by_document([row["document_ids"][0] for row in rows], windows)
        documents = {number: (length.nll_nats, length.num_tokens) for number, length in lengths.items()}
        costs.append(FormatCost(name, bits_a_code, sum(windows, CodeLength()), documents))

    with unrounded_codes(model):
        codes_NP = row_codes(model, rows, collator, batch_size)
        add(UNROUNDED, 32 * codes_NP.numel(), codes_NP)
        for name in CODE_FORMATS:
            stored = store_codes(codes_NP, name)
            add(name, stored.num_bits, load_codes(stored))
        probed_bits = store_codes(codes_NP, "int8").num_bits
        probed_NP = int8_probe(codes_NP)
        add(PROBE, probed_bits, probed_NP)
        if bottleneck.up is not None:
            with _replaced(bottleneck, "up", int8_linear(bottleneck.up)):
                add(PROBE_UP, probed_bits, probed_NP)
    return costs


def number_of_formats(model: PreTrainedModel) -> int:
    """How many times `measure_formats` scores all rows."""
    return 2 + len(CODE_FORMATS) + (find_bottleneck(model).up is not None)


@dataclass(frozen=True)
class LayerEffect:
    """What rounding one part of one layer does to the loss.

    Attributes:
        layer: the module's name in the model.
        part: "activations" (the layer's output) or "weights".
        code_format: the format that they are rounded to.
        nats: added cross-entropy a token; NaN for the activations of a layer that no row went through.
    """

    layer: str
    part: str
    code_format: str
    nats: float


def sweep_layers(
    model: PreTrainedModel,
    rows: Sequence[Row],
    collator: CausalCollator,
    batch_size: int = 16,
    advance: Advance | None = None,
) -> list[LayerEffect]:
    """Round the activations, then the weights, of one Linear or Embedding at a time; the code is not rounded."""
    num_tokens = sum(len(row["input_ids"]) - 1 for row in rows)

    def loss() -> float:
        return sum(row_nats(model, rows, collator, batch_size, advance=advance)) / num_tokens

    roundings = {"activations": _rounded_activations, "weights": _rounded_weights}
    effects = []
    with unrounded_codes(model):
        plain = loss()
        for part in SWEEP_PARTS:
            for name in SWEEP_FORMATS:
                for layer, module in swept_layers(model).items():
                    with roundings[part](module, CODE_FORMATS[name]) as was_used:
                        nats = loss() - plain
                        effects.append(LayerEffect(layer, part, name, nats if was_used() else float("nan")))
    return effects


def evenly_spread(rows: Sequence[Any], at_most: int) -> list[Any]:
    """Some of the rows, taken from the whole of them."""
    count = min(at_most, len(rows))
    return [rows[index * len(rows) // count] for index in range(count)]


def swept_layers(model: PreTrainedModel) -> dict[str, _Layer]:
    """The Linears (GPT-2's are called Conv1D) and Embeddings of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _Layer)}


def find_bottleneck(model: PreTrainedModel) -> Bottleneck:
    """The module that makes the code; ValueError for a model without one."""
    for module in model.modules():
        if isinstance(module, Bottleneck):
            return module
    raise ValueError(f"a {model.config.model_type!r} model has no code: name an entropy estimation model.")


@contextmanager
def unrounded_codes(model: PreTrainedModel) -> Iterator[None]:
    """While this is open, codes are not rounded, whatever format the checkpoint stores them in."""
    code_dtype = model.config.code_dtype
    model.config.code_dtype = None
    try:
        yield
    finally:
        model.config.code_dtype = code_dtype


@contextmanager
def _replaced(parent: nn.Module, name: str, module: nn.Module) -> Iterator[None]:
    original = parent.get_submodule(name)
    setattr(parent, name, module)
    try:
        yield
    finally:
        setattr(parent, name, original)


@contextmanager
def _rounded_activations(module: nn.Module, code_format: CodeFormat) -> Iterator[Callable[[], bool]]:
    calls = 0

    def rounded(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return code_format.round(output)

    handle = module.register_forward_hook(rounded)
    try:
        yield lambda: calls > 0
    finally:
        handle.remove()


@contextmanager
def _rounded_weights(module: _Layer, code_format: CodeFormat) -> Iterator[Callable[[], bool]]:
    original = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.copy_(code_format.round(original))
    try:
        yield lambda: True
    finally:
        with torch.no_grad():
            module.weight.copy_(original)


@dataclass(frozen=True, eq=False)
class CodeHistogram:
    """How often a code's numbers fall into each bucket.

    Attributes:
        edges: `[buckets + 1]`, equal steps from the smallest to the largest number of all windows; around the number
            of a constant code.
        counts: `[windows, buckets]`.
    """

    edges: list[float]
    counts: list[list[int]]

    @property
    def aggregated(self) -> list[int]:
        """All windows together, `[buckets]`."""
        return [sum(column) for column in zip(*self.counts)]


def code_histogram(codes_NP: Tensor, num_buckets: int = 128) -> CodeHistogram:
    """The histogram of some windows' codes, with the same buckets for all."""
    low, high = codes_NP.min().item(), codes_NP.max().item()
    if low == high:  # a constant code: buckets need a width
        low, high = low - 0.5, high + 0.5
    counts = [torch.histc(code_P.float().cpu(), num_buckets, low, high).long().tolist() for code_P in codes_NP]
    return CodeHistogram(torch.linspace(low, high, num_buckets + 1).tolist(), counts)
