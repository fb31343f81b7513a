"""Held-out code length: the honest bits of rows, by any causal model, entropy estimation model or autoencoder."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from modeling_eem.bits import CodeLength, window_length_bits
from modeling_eem.data.collator import CausalCollator
from modeling_eem.data.rows import Row
from modeling_eem.loading import evaluating
from modeling_eem.models.configuration_eem import has_code, is_autoencoder
from modeling_eem.models.loss_eem import IGNORE_INDEX
from modeling_eem.models.modeling_eem import EEMForCausalLM
from modeling_eem.training import Run
from modeling_eem.training.token_metrics import code_bits_a_row

# Called after each batch with its number of rows.
Advance = Callable[[int], None]


def code_bits_of(config: PreTrainedConfig) -> float:
    """Bits of one window's code as it is stored: its numbers in `code_dtype`, including the scale.

    A causal model has no code: 0.

    Raises:
        ValueError: for a model with a code but without `code_dtype`, which settles how many bits a number takes.
    """
    if (bits := code_bits_a_row(config)) is None:
        raise ValueError(
            "the model's code has no storage format, so its bits cannot be counted: set config.code_dtype, for "
            "example to 'float8_e4m3fn'."
        )
    return bits


def window_code_lengths(
    model: PreTrainedModel,
    rows: Sequence[Row],
    collator: CausalCollator,
    batch_size: int = 16,
    advance: Advance | None = None,
) -> list[CodeLength]:
    """The bits that the model needs for each of `rows` by itself, in the order of the rows.

    A row costs its cross-entropy, its code as stored (the loss is measured with the rounded code), and, if it is
    shorter than the context, its length. BOS is given.

    Raises:
        ValueError: as in `code_bits_of`, and for rows that the collator refuses.
    """
    code_bits = code_bits_of(model.config)
    nats = row_nats(model, rows, collator, batch_size, advance=advance)
    return [window_of(row, value, code_bits, collator.max_length) for row, value in zip(rows, nats)]


def window_of(row: Row, nll_nats: float, code_bits: float, max_length: int) -> CodeLength:
    """The code length of a row of at most `max_length` tokens (n, BOS included), from its nats and its code's bits."""
    num_tokens = _num_tokens(row)
    return CodeLength(
        nll_nats=nll_nats,
        code_bits=code_bits,
        side_bits=window_length_bits(num_tokens, max_length),
        num_bytes=row["num_bytes"],
        num_tokens=num_tokens - 1,
    )


def _num_tokens(row: Row) -> int:
    """Real tokens: prepared rows may hold padding, and a mask that tells."""
    return int(sum(row["attention_mask"])) if "attention_mask" in row else len(row["input_ids"])


def _with_mask(row: Row) -> dict[str, Any]:
    """Without a mask a row of BOS and EOS would count as padding where one id is all three."""
    return {"attention_mask": [1] * len(row["input_ids"]), **row}


def by_document(documents: Sequence[int], windows: Sequence[CodeLength]) -> dict[int, CodeLength]:
    """The code length of each document, summed over all windows: window i begins in `documents[i]`."""
    sums: dict[int, CodeLength] = {}
    for document, window in zip(documents, windows):
        sums[document] = sums.get(document, CodeLength()) + window
    return sums


def held_out_code_length(
    model: PreTrainedModel,
    rows: Sequence[Row],
    collator: CausalCollator,
    batch_size: int = 16,
    advance: Advance | None = None,
) -> CodeLength:
    """The sum of `window_code_lengths`."""
    return sum(window_code_lengths(model, rows, collator, batch_size, advance), CodeLength())


def held_out(run: Run, advance: Advance | None = None) -> CodeLength:
    """`held_out_code_length` of a run's held-out rows."""
    rows = run.held_out_rows
    return held_out_code_length(run.model, rows, run.collator, advance=advance)  # pyright: ignore[reportArgumentType]  # Dataset of `Row`s


@torch.no_grad()
def row_nats(
    model: PreTrainedModel,
    rows: Sequence[Row],
    collator: CausalCollator,
    batch_size: int = 16,
    codes_NP: Tensor | None = None,
    advance: Advance | None = None,
) -> list[float]:
    """The summed cross-entropy of each row in nats, without BOS, added up in float64.

    Causal models and entropy estimation models predict the next token, autoencoders regenerate the token itself. Rows
    are read in order of length, which changes no value.

    Args:
        codes_NP: one code for each row, only rounded to `config.code_dtype`; by default the rows are encoded.

    Raises:
        ValueError: for a row whose value is NaN or infinite.
    """
    nats = [0.0] * len(rows)
    with evaluating(model):
        for indices, batch in _batches(model, rows, collator, batch_size):
            code = {} if codes_NP is None else {"code": codes_NP[indices].to(model.device)}
            for index, value in zip(indices, _batch_nats(model, batch, code)):
                if not math.isfinite(value):
                    name = model.name_or_path or model.config.model_type
                    raise ValueError(
                        f"{name}: row {index} costs {value} nats, because the model's outputs are not finite: train "
                        "it again with a lower learning rate, or take an earlier checkpoint."
                    )
                nats[index] = value
            if advance is not None:
                advance(len(indices))
    return nats


@torch.no_grad()
def row_codes(model: PreTrainedModel, rows: Sequence[Row], collator: CausalCollator, batch_size: int = 16) -> Tensor:
    """The code of each row, `[N, P]`, rounded to `config.code_dtype` if there is one.

    Raises:
        ValueError: for a model without a code.
    """
    if not has_code(model.config):
        raise ValueError(f"a {model.config.model_type!r} model has no code: name an entropy estimation model.")
    encode = cast(EEMForCausalLM, model).encode  # or an autoencoder's
    codes = [torch.empty(0)] * len(rows)
    with evaluating(model):
        for indices, batch in _batches(model, rows, collator, batch_size):
            for index, code_P in zip(indices, encode(batch["input_ids"], batch["attention_mask"])):
                codes[index] = code_P
    return torch.stack(codes)


def _batches(
    model: PreTrainedModel, rows: Sequence[Row], collator: CausalCollator, batch_size: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Whole rows of about equal length, padded on the right, where no causal model sees it; and their places."""
    collator = replace(collator, random_prefix_probability=0.0, padding_side="right")
    order = sorted(range(len(rows)), key=lambda index: _num_tokens(rows[index]))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = collator([_with_mask(rows[index]) for index in indices])
        yield indices, {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask", "labels")}


def _batch_nats(model: PreTrainedModel, batch: dict[str, Tensor], code: dict[str, Tensor]) -> list[float]:
    """The nats of each row, from logits, which mean the same for all models."""
    labels_BT, mask_BT = batch["labels"], batch["attention_mask"]
    if is_autoencoder(model.config):
        inputs = {} if code else {"input_ids": batch["input_ids"]}
        logits_BTV = model(**inputs, **code, attention_mask=mask_BT).logits
    else:
        # An entropy estimation model reads the row it is scored on: without its code, it needs the row explicitly.
        reads = {"encoder_input_ids": batch["input_ids"], "encoder_attention_mask": mask_BT}
        memory = (code or reads) if has_code(model.config) else {}
        logits_BTV = model(input_ids=batch["input_ids"], attention_mask=mask_BT, use_cache=False, **memory).logits
        logits_BTV, labels_BT = logits_BTV[:, :-1], labels_BT[:, 1:]
    # Row by row: the logits of a batch are large, and cross-entropy copies them.
    return [
        F.cross_entropy(logits_TV.float(), labels_T, ignore_index=IGNORE_INDEX, reduction="none").double().sum().item()
        for logits_TV, labels_T in zip(logits_BTV, labels_BT)
    ]
