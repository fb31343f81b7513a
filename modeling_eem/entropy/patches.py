"""Uses of per-token entropies: patches of text, and scores of continuations given their prefixes."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from modeling_eem.entropy.base import EntropyEstimator
from modeling_eem.entropy.result import TokenEntropies


def patch_starts(values_T: Tensor, threshold: float, monotonic: bool = False) -> Tensor:
    """Where patches begin, `[T]`, bool.

    A patch begins at token t if `H_t > threshold`; with `monotonic` if `H_t - H_{t-1} > threshold`: a stretch of high
    entropies is then one patch. The first token begins a patch; a token that is not scored (NaN) begins none.

    Source: Pagnoni et al. 2024, Byte Latent Transformer, arXiv 2412.09871, section 2.3.
    """
    before_T = torch.cat([values_T[:1], values_T[:-1]])
    starts_T = (values_T - before_T if monotonic else values_T) > threshold
    starts_T[:1] = True
    return starts_T


def entropy_patches(entropies: TokenEntropies, threshold: float, monotonic: bool = False) -> pd.DataFrame:
    """One line a patch: `row`, `index`, `tokens`, `patch` (its text), `start_byte`, `end_byte` and its values' sum.

    Patches are cut by the predictive entropies if the result has them, as in the source, else by the values. A row's
    patches join to its text, and their sums add up to those of its tokens.

    Args:
        entropies: with texts.
        threshold: in nats.

    Raises:
        ValueError: for a result without texts.
    """
    if entropies.texts is None or entropies.offsets is None:
        raise ValueError("these entropies know no text: pass tokenizer= to the estimator.")
    cut_by_BT = entropies.values if entropies.predictive_nats is None else entropies.predictive_nats
    lines = []
    for row, (text, mask_T) in enumerate(zip(entropies.texts, entropies.attention_mask)):
        values_T, offsets_TX = entropies.values[row][mask_T], entropies.offsets[row][mask_T]
        # A token without bytes, such as BOS, begins no patch except the first.
        starts_T = patch_starts(cut_by_BT[row][mask_T], threshold, monotonic) & (offsets_TX[:, 1] > offsets_TX[:, 0])
        starts = sorted({0, *starts_T.nonzero().flatten().tolist()})
        if len(starts) > 1 and int(offsets_TX[starts[1], 0]) == 0:  # only BOS before it
            starts.pop(1)
        for index, (start, stop) in enumerate(zip(starts, [*starts[1:], len(values_T)])):
            first = int(offsets_TX[start, 0]) if index else 0
            end = int(offsets_TX[stop, 0]) if stop < len(values_T) else len(text)
            patch = text[first:end].decode("utf-8", "backslashreplace")
            total = float(values_T[start:stop].nansum())
            lines.append((row, index, stop - start, patch, first, end, total))
    columns = ["row", "index", "tokens", "patch", "start_byte", "end_byte", entropies.value_column]
    return pd.DataFrame(lines, columns=columns)


def conditional_entropies(
    estimator: EntropyEstimator,
    prefixes: Sequence[str],
    continuations: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> TokenEntropies:
    """The values of each continuation after its prefix; the prefix's values are NaN, so `totals()` is the score.

    The two are read as one text, `prefix + continuation`: put the blank between them into one of the two, to suit the
    tokenizer. A token that holds bytes of both belongs to the continuation.

    Raises:
        ValueError: if the numbers of prefixes and continuations differ, and for what the estimator refuses.
    """
    if len(prefixes) != len(continuations):
        raise ValueError(f"{len(prefixes)} prefixes need as many continuations, not {len(continuations)}.")
    result = estimator([prefix + continuation for prefix, continuation in zip(prefixes, continuations)], tokenizer)
    lengths_B = torch.tensor([len(prefix.encode()) for prefix in prefixes])
    assert result.offsets is not None  # it was given texts
    is_prefix_BT = result.offsets[:, :, 1] <= lengths_B[:, None]
    return replace(result, values=result.values.masked_fill(is_prefix_BT, float("nan")))
