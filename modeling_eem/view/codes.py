"""An entropy estimation model's code of a text: its numbers, the bits they save, and the text decoded from them.

Names of tensors end in their shape: B batch (1), T tokens, P numbers of the code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import cast

import torch
from torch import Tensor

from modeling_eem.bits import nats_to_bits
from modeling_eem.data.tokenizer import is_byte_level, token_bytes
from modeling_eem.entropy.result import TokenEntropies
from modeling_eem.entropy.texts import TextRows, rows_of_texts
from modeling_eem.loading import evaluating
from modeling_eem.report.code_bars import Run
from modeling_eem.training.token_metrics import code_bits_a_row
from modeling_eem.view.estimates import Estimate
from modeling_eem.view.models import ViewedModel


@dataclass(frozen=True)
class Encoded:
    """The beginning of a text that fits the model's context, and its code.

    Attributes:
        rows: one row, BOS first.
        tokens_left: number of tokens of the text after it.
        code: P numbers, rounded as they are stored.
    """

    rows: TextRows
    tokens_left: int
    code: tuple[float, ...]


@dataclass(frozen=True)
class CodeReading:
    """What a code tells the decoder of a text.

    Attributes:
        code: the numbers as the decoder got them, rounded.
        estimates: for each token, cross-entropy with the code, without it, and what the code saves.
        runs: the text that the decoder writes from the code alone, in parts that match the text's tokens or do not.
        num_same: how many of its tokens match.
        notes: the bits that the code saves, and the bits that it takes.
    """

    code: tuple[float, ...]
    estimates: tuple[Estimate, ...]
    runs: tuple[Run, ...]
    num_same: int
    num_tokens: int
    notes: tuple[str, ...]


def encode_text(viewed: ViewedModel, text: str) -> Encoded:
    """The code of a text, or of as much of its beginning as the model's context holds.

    Raises:
        ValueError: for an empty text.
    """
    whole = rows_of_texts([text], viewed.tokenizer)
    ids_T, offsets_TX = whole.ids[0], whole.offsets[0]
    kept = min(len(ids_T), viewed.eem.config.max_position_embeddings)
    end = len(whole.texts[0]) if kept == len(ids_T) else int(offsets_TX[kept - 1, 1])
    rows = TextRows([ids_T[:kept]], (whole.texts[0][:end],), [offsets_TX[:kept]])
    with evaluating(viewed.eem):
        code_BP = viewed.eem.encode(_batch(viewed, rows))
    return Encoded(rows, len(ids_T) - kept, tuple(code_BP[0].float().tolist()))


def read_code(viewed: ViewedModel, encoded: Encoded, numbers: Sequence[float]) -> CodeReading:
    """What a code, the text's own or another, tells the decoder of the text.

    Raises:
        ValueError: for a code of another size.
    """
    model, ids_BT = viewed.eem, _batch(viewed, encoded.rows)
    code_BP = cast(torch.FloatTensor, torch.tensor([list(numbers)], dtype=torch.float32, device=model.device))
    with evaluating(model):
        told = model(ids_BT, labels=ids_BT, code=code_BP, output_token_losses=True)
        alone = model(ids_BT, labels=ids_BT, occlude_memory=True, output_token_losses=True)
        written_BT = model.generate(
            code=code_BP,
            max_new_tokens=ids_BT.shape[1] - 1,
            do_sample=False,
            num_beams=1,
            bos_token_id=int(encoded.rows.ids[0][0]),
        )
    with_T, without_T = told.token_losses[0].double().cpu(), alone.token_losses[0].double().cpu()
    estimates = (
        _estimate("with the code", encoded.rows, with_T, "causal"),
        _estimate("without the code", encoded.rows, without_T, "causal"),
        _estimate("what the code saves", encoded.rows, without_T - with_T, "occlusion"),
    )
    target, written = encoded.rows.ids[0].tolist(), written_BT[0].tolist()
    same = [place < len(target) and index == target[place] for place, index in enumerate(written)][1:]
    runs = _runs(viewed, written[1:], same)
    rounded = tuple(told.code[0].float().tolist())
    notes = _notes(viewed, float((without_T - with_T).nansum()))
    return CodeReading(rounded, estimates, runs, sum(same), len(target) - 1, notes)


def reach(numbers: Sequence[float]) -> float:
    """A round number, with some room, above the size of all numbers of a code: where sliders and axes end."""
    largest = 1.5 * max((abs(number) for number in numbers), default=0.0)
    for limit in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000):
        if largest <= limit:
            return float(limit)
    return largest


def _batch(viewed: ViewedModel, rows: TextRows) -> torch.LongTensor:
    return cast(torch.LongTensor, rows.ids[0][None].to(viewed.eem.device))


def _estimate(name: str, rows: TextRows, values_T: Tensor, method: str) -> Estimate:
    return Estimate(name, TokenEntropies.of_rows(rows, [values_T], method), None, "", ())


def _runs(viewed: ViewedModel, ids: list[int], same: list[bool]) -> tuple[Run, ...]:
    """Join neighbouring tokens of one kind to parts; a character that the end of a part cuts becomes its bytes."""
    groups = [(is_same, [i for _, i in pairs]) for is_same, pairs in groupby(zip(same, ids), key=itemgetter(0))]
    if not is_byte_level(viewed.tokenizer):
        return tuple(Run(str(viewed.tokenizer.decode(group)), is_same) for is_same, group in groups)
    parts = [(is_same, b"".join(token_bytes(viewed.tokenizer, group))) for is_same, group in groups]
    return tuple(Run(part.decode("utf-8", "backslashreplace"), is_same) for is_same, part in parts)


def _notes(viewed: ViewedModel, saved_nats: float) -> tuple[str, ...]:
    code_bits = code_bits_a_row(viewed.eem.config)
    saved = f"The code saves {nats_to_bits(saved_nats):,.1f} bits of the text"
    if code_bits is None:
        return (f"{saved}; without code_dtype in the model's config no one knows how many it takes.",)
    return (f"{saved}, and takes {code_bits:,} bits itself ({viewed.eem.config.code_dtype}).",)
