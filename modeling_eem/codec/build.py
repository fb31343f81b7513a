"""Builds an integer model from a float model: int8 weights, activation grids, tables.

Shapes are those of `weights`. Every choice made here is stored; a decoder recomputes none of it.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.activations import ACT2FN

from modeling_eem.loading import check_tokenizer, evaluating

from .calibration import Activations, best_step, record_activations
from .code_encoder import CodeEncoder
from .code_prior import code_tensors
from .float_model_parts import CodeParts, FloatParts, MaskedMixerBlock, MaskedMixerMixing, float_parts
from .integer_model import IntegerModel
from .tensor_grids import (
    ACTIVATION_ENTRIES,
    ACTIVATION_LIMIT,
    GAIN_BITS,
    LOGIT_BITS,
    MEMORY_BIAS_LIMIT,
    MEMORY_WEIGHT_LIMIT,
    NORM_BITS,
    RESIDUAL_LIMIT,
    WEIGHT_LIMIT,
)
from .text import TokenTable
from .weights import Sizes, Tensors

# How much larger than on the calibration text the residual stream may become before it saturates.
RESIDUAL_ROOM = 4.0
# A finer grid is useless, and a LayerNorm's epsilon must fit beside the squares in it.
MOST_RESIDUAL_BITS = 24
# Rows that activations are recorded on, and rows that run at once.
CALIBRATION_ROWS = 128
# The largest bias in units of its row's scale; 2^30 with what a zero point adds.
MOST_BIAS = 1 << 29
ROWS_AT_ONCE = 8


def quantize_decoder(parts: FloatParts, batches: Sequence[dict[str, Tensor | bool]]) -> tuple[Sizes, Tensors]:
    """Sizes and tensors of the decoder; for an EEM without the tables of its code.

    Raises:
        ValueError: for weights or activations that are not finite.
    """
    if not all(parameter.isfinite().all() for parameter in parts.model.parameters()):
        raise ValueError("the model holds weights that are not finite: its training failed, take another checkpoint.")
    activations = record_activations(parts, batches)
    config = parts.config
    reach = RESIDUAL_ROOM * max(activations.largest["residual"], 2.0**-MOST_RESIDUAL_BITS)
    residual_bits = min(MOST_RESIDUAL_BITS, math.floor(math.log2(RESIDUAL_LIMIT / reach)))
    unit = 2.0**residual_bits  # residual stream units in one
    d = config.hidden_size
    sizes = Sizes(
        vocab_size=config.vocab_size,
        hidden_size=d,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        context=parts.context,
        num_heads=config.num_mixing_heads,
        kernel_size=config.mixing_kernel_size,
        bos_token_id=parts.bos_token_id,
        norm_epsilon=max(1, round(config.layer_norm_eps * (d * unit) ** 2)),
        is_tied=bool(config.tie_word_embeddings),
        introduction=parts.introduction,
        code_dtype=None if parts.code is None else parts.code.dtype,
        code_size=0 if parts.code is None else parts.code.config.code_size,
    )
    tensors = _embedding_and_head(parts, unit, sizes.is_tied)
    for index, layer in enumerate(parts.layers):
        tensors |= _block(f"{index}", layer, activations, unit, config.hidden_act)
    return sizes, tensors


def quantize_rows(weight: Tensor, offset: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """int8 integers, and a float64 scale for each row (the first axis): a row's largest magnitude becomes 127.

    Args:
        offset: a bias for each row, in the weights' units. A row of zeros, as pruning leaves it, has a scale in which
            its bias fits.
    """
    flat = weight.detach().double().reshape(len(weight), -1)
    scale = flat.abs().amax(1).clamp(min=1e-30) / WEIGHT_LIMIT
    if offset is not None:
        scale = torch.maximum(scale, offset.abs() / MOST_BIAS)
    scale = scale.float().double()  # stored in float32
    integers = (flat / scale[:, None]).round().clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT)
    return integers.reshape(weight.shape).to(torch.int8).numpy(), scale.numpy()


def _embedding_and_head(parts: FloatParts, unit: float, is_tied: bool) -> Tensors:
    head, head_scale = quantize_rows(parts.head.weight)
    embedding, embedding_scale = (head, head_scale) if is_tied else quantize_rows(parts.embedding.weight)
    tensors = {
        "head.weight": head,
        "head.scale": head_scale.astype(np.float32),
        # Turns `sum * scale * m / 127` in the residual stream's units into 1/256 bit.
        "head.factor": np.array([(1 << LOGIT_BITS) / (math.log(2) * ACTIVATION_LIMIT * unit)]),
        "embedding.scale": (embedding_scale * unit).astype(np.float32),
    }
    return tensors if is_tied else tensors | {"embedding.weight": embedding}


def _block(name: str, layer: MaskedMixerBlock, activations: Activations, unit: float, hidden_act: str) -> Tensors:
    mixing, mlp = layer.mixing, layer.mlp
    tensors: Tensors = {}
    step = best_step(activations.sample(f"{name}.mixing_norm"))
    tensors |= _norm(f"{name}.mixing_norm", layer.mixing_layernorm, step)
    if mixing.in_proj is None or mixing.out_proj is None:
        tensors |= _mixing(name, mixing, np.array([step]), np.array([1 / unit]))
    else:
        head_steps = [
            np.array([best_step(activations.sample(f"{name}.{site}.{h}")) for h in range(mixing.num_heads)])
            for site in ("mixing_in", "mixing_out")
        ]
        width = len(mixing.in_proj.weight) // mixing.num_heads
        inputs, outputs = (np.repeat(steps, width) for steps in head_steps)
        tensors |= _linear(f"{name}.mixing_in", mixing.in_proj, step, 1 / inputs)
        tensors |= _mixing(name, mixing, *head_steps)
        # Each head's step goes into its columns of the projection.
        weight = mixing.out_proj.weight * torch.from_numpy(outputs).to(mixing.out_proj.weight)
        tensors |= _linear(f"{name}.mixing_out", mixing.out_proj, 1.0, unit, weight=weight)
    step = best_step(activations.sample(f"{name}.mlp_norm"))
    tensors |= _norm(f"{name}.mlp_norm", layer.mlp_layernorm, step)
    # The finest power of two that keeps the largest input, and at least +-2, inside the table.
    reach = max(activations.largest[f"{name}.up"] * 1.25, 2.0)
    input_bits = math.floor(math.log2(ACTIVATION_ENTRIES / 2 / reach))
    tensors |= _linear(f"{name}.up", mlp.up_proj, step, 2.0**input_bits)
    table, out_step, zero = _activation_table(activations.sample(f"{name}.down"), input_bits, hidden_act)
    tensors[f"{name}.activation.table"] = table
    return tensors | _linear(f"{name}.down", mlp.down_proj, out_step, unit, zero_point=zero)


def _norm(name: str, norm: nn.LayerNorm, step: float) -> Tensors:
    """`gain = weight / step` in units of 2^-12, `offset = bias / step` in units of 2^-24."""
    gain = norm.weight.detach().double() / step * 2.0**GAIN_BITS
    offset = norm.bias.detach().double() / step * 2.0 ** (GAIN_BITS + NORM_BITS)
    return {
        f"{name}.gain": gain.round().to(torch.int32).numpy(),
        f"{name}.offset": offset.round().to(torch.int64).numpy(),
    }


def _linear(
    name: str,
    linear: nn.Linear,
    step: float,
    outputs: np.ndarray | float,
    zero_point: int = 0,
    weight: Tensor | None = None,
) -> Tensors:
    """A Linear for inputs `step (q + zero_point)`; its sums times `scale` are its outputs times `outputs`."""
    offset = linear.bias.detach().double() / step
    integers, scale = quantize_rows(linear.weight if weight is None else weight, offset)
    bias = offset.numpy() / scale + zero_point * integers.astype(np.float64).sum(1)
    return {
        f"{name}.weight": integers,
        f"{name}.bias": _int32(name, bias),
        f"{name}.scale": (scale * step * outputs).astype(np.float32),
    }


def _mixing(name: str, mixing: MaskedMixerMixing, steps_H: np.ndarray, out_steps_H: np.ndarray) -> Tensors:
    """Mixing matrices, quantized row by row; `steps_H` and `out_steps_H` are each head's input and output steps."""
    n, heads, taps = mixing.bias.shape[-1], mixing.num_heads, mixing.kernel_size
    weight_HNNK = mixing.without_future(mixing.weight.detach()).reshape(heads, n, n, taps)
    offset_HN = mixing.bias.detach().double().reshape(heads, n) / torch.from_numpy(steps_H)[:, None]
    integers, scale = quantize_rows(weight_HNNK.reshape(heads * n, n, taps), offset_HN.flatten())
    scale_HN = scale.reshape(heads, n)
    bias = offset_HN.numpy() / scale_HN
    triangle = np.tril_indices(n)
    return {
        f"{name}.mixing.weight": integers.reshape(heads, n, n, taps).transpose(0, 3, 1, 2)[:, :, *triangle],
        f"{name}.mixing.bias": _int32(f"{name}.mixing", bias),
        f"{name}.mixing.scale": (scale_HN * (steps_H / out_steps_H)[:, None]).astype(np.float32),
    }


def _activation_table(values: Tensor, input_bits: int, hidden_act: str) -> tuple[np.ndarray, float, int]:
    """`table[i] = rint(f(i 2^-input_bits) / step) - zero_point` as int8, its step and zero point.

    The zero point puts the function's smallest value at -127, because a GELU is hardly ever negative.
    """
    half = ACTIVATION_ENTRIES // 2
    inputs = torch.arange(-half, half, dtype=torch.float64) * 2.0**-input_bits
    outputs = ACT2FN[hidden_act](inputs)
    least = min(outputs.min().item(), 0.0)
    step = best_step(values.double() - least, 0, 2 * ACTIVATION_LIMIT)
    zero_point = round(least / step) + ACTIVATION_LIMIT
    table = ((outputs / step).round() - zero_point).clamp(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)
    return table.to(torch.int8).numpy(), step, zero_point


def _int32(name: str, values: np.ndarray) -> np.ndarray:
    if np.abs(values).max() >= 1 << 30:
        raise ValueError(f"{name!r}: a bias is too large for its weights (past 2^30 of their units).")
    return np.rint(values).astype(np.int32)


def memory_tensors(code: CodeParts, code_bits: int, tensors: Tensors) -> Tensors:
    """The projection from a fixed-point code (units of 2^-code_bits) to the memory in the residual stream's units."""
    unit = (1 << LOGIT_BITS) / (math.log(2) * ACTIVATION_LIMIT * float(tensors["head.factor"][0]))
    weight, bias = code.memory_projection()
    scale = weight.abs().amax(1).clamp(min=1e-30) / MEMORY_WEIGHT_LIMIT
    scale = (scale * 2.0**-code_bits * unit).float().double()
    integers = (weight * 2.0**-code_bits * unit / scale[:, None]).round()
    integers = integers.clamp(-MEMORY_WEIGHT_LIMIT, MEMORY_WEIGHT_LIMIT)
    return {
        "memory.weight": integers.to(torch.int32).detach().numpy(),
        "memory.bias": (bias * unit / scale)
        .round()
        .clamp(-MEMORY_BIAS_LIMIT, MEMORY_BIAS_LIMIT)
        .to(torch.int64)
        .detach()
        .numpy(),
        "memory.scale": scale.float().detach().numpy(),
    }


def build_integer_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration_texts: Sequence[str]
) -> IntegerModel:
    """The integer model of a float model. Its grids, and the prior of an EEM's code, are fitted to calibration text.

    Args:
        model: a MaskedMixerForCausalLM, or an EEMForCausalLM whose decoder is a masked mixer.
        calibration_texts: text like the text to compress; 100 kB are enough, but a code's prior uses all there is.

    Raises:
        ValueError: for a model that no codec can be built from (`float_parts`), calibration texts without text,
            weights outside the bounds of the format, or a tokenizer that has no tokenizer.json, is not byte-level,
            has more tokens or another BOS than the model, or changes the bytes of every calibration text.
    """
    parts = float_parts(model)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"{type(tokenizer).__name__} has no tokenizer.json, which a codec model stores: use a fast one."
        )
    table = TokenTable(tokenizer.backend_tokenizer, parts.config.vocab_size)
    check_tokenizer(parts.config, tokenizer)
    with evaluating(model):
        rows = calibration_rows(parts, tokenizer, calibration_texts)
        _check_keeps_bytes(table, calibration_texts)
        batches = list(_batches(parts, _rows_for_ranges(rows)))
        sizes, tensors = quantize_decoder(parts, batches)
        code_encoder = None
        if parts.code is not None:
            code_encoder = CodeEncoder(copy.deepcopy(parts.code.encoder).float(), copy.deepcopy(parts.code.config))
            tables, code_bits = code_tensors(code_encoder.values(rows), parts.code.dtype)
            tensors |= tables | memory_tensors(parts.code, code_bits, tensors)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()  # an earlier call's stays in the tokenizer (transformers 5.23), and is none of the codec's
    backend.no_padding()
    return IntegerModel(sizes, tensors, tokenizer, backend.to_str(), code_encoder)


def calibration_rows(parts: FloatParts, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The texts cut into windows, BOS first."""
    rows = []
    for text in texts:
        tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for first in range(0, len(tokens), parts.context - 1):
            rows.append([parts.bos_token_id, *tokens[first : first + parts.context - 1]])
    if not rows:
        raise ValueError("the calibration texts hold no text: give texts like those that you will compress.")
    return rows


def _rows_for_ranges(rows: Sequence[list[int]]) -> Sequence[list[int]]:
    """The longest rows, spread over the text: short ones show what a model does at its first positions alone."""
    most = max(map(len, rows))
    whole = [row for row in rows if len(row) == most]
    if len(whole) < CALIBRATION_ROWS:
        return sorted(rows, key=len, reverse=True)[:CALIBRATION_ROWS]
    return [whole[index * len(whole) // CALIBRATION_ROWS] for index in range(CALIBRATION_ROWS)]


def _check_keeps_bytes(table: TokenTable, texts: Sequence[str]) -> None:
    if all(table.encode(text.encode()) is None for text in texts if text):
        raise ValueError(
            "the tokenizer changes the bytes of every calibration text, so the codec could use it for none: take one "
            "without a normalizer and without add_prefix_space, and train the model with that."
        )


def _batches(parts: FloatParts, rows: Sequence[list[int]]) -> Iterator[dict[str, Tensor | bool]]:
    for first in range(0, len(rows), ROWS_AT_ONCE):
        # Rows of one length only: the codec never meets activations on padding.
        by_length: dict[int, list[list[int]]] = {}
        for row in rows[first : first + ROWS_AT_ONCE]:
            by_length.setdefault(len(row), []).append(row)
        for same in by_length.values():
            batch: dict[str, Tensor | bool] = {"input_ids": torch.tensor(same)}
            if parts.introduction == "none":
                yield batch
            else:
                yield batch | {"encoder_input_ids": batch["input_ids"]}
                yield batch | {"occlude_memory": True}


@dataclass(frozen=True)
class BitsReport:
    """Bits of one text by the float model and by the integer model, both without codes."""

    float_bits: float
    integer_bits: float

    @property
    def ratio(self) -> float:
        return self.integer_bits / self.float_bits


@torch.no_grad()
def compare_bits(
    model: PreTrainedModel,
    integer_model: IntegerModel,
    texts: Sequence[str],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> BitsReport:
    """The bits of windows of `texts` by the float model and by its integer model, with occluded memories.

    Args:
        report: called with the numbers of finished windows and of all windows.
    """
    parts = float_parts(model)
    rows = calibration_rows(parts, integer_model.tokenizer, texts)
    float_bits, integer_bits = 0.0, 0.0
    occluded = {} if parts.introduction == "none" else {"occlude_memory": True}
    for first in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[first : first + ROWS_AT_ONCE]
        for row in some:
            ids = torch.tensor([row])
            logits_TV = model(ids, use_cache=False, **occluded).logits[0, :-1].double()
            float_bits += torch.nn.functional.cross_entropy(logits_TV, ids[0, 1:], reduction="sum").item() / math.log(
                2
            )
        integer_bits += sum(integer_model.window_costs_bits([row[1:] for row in some]))
        report(first + len(some), len(rows))
    return BitsReport(float_bits, integer_bits)
