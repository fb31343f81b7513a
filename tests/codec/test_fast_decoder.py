"""The compiled decoder and the plain one give the same integers."""

from collections.abc import Callable

import numpy as np
import pytest

from modeling_eem.codec import IntegerModel
from modeling_eem.codec.plain_decoder import PlainDecoder
from modeling_eem.codec.tensor_grids import ACTIVATION_LIMIT, SUM_LIMIT
from modeling_eem.codec.weights import check_tensors, row_sums

pytest.importorskip("numba")

KINDS = ["flat", "tied", "heads", "taps", "odd", "token", "embedding", "combination"]

MakeModel = Callable[[str], IntegerModel]
Draw = Callable[[IntegerModel, int], tuple[list[list[int]], list[list[int]]]]


@pytest.mark.parametrize("kind", KINDS)
def test_fast_scores_are_the_plain_ones(integer_model: MakeModel, draw_windows: Draw, kind: str) -> None:
    from modeling_eem.codec.fast_decoder import FastDecoder

    model = integer_model(kind)
    windows, contexts = draw_windows(model, 12)
    texts = [[model.sizes.bos_token_id, *context, *window] for context, window in zip(contexts, windows)]
    first = [1 + len(context) for context in contexts]
    plain, fast = (kind(model.sizes, model.tensors) for kind in (PlainDecoder, FastDecoder))
    rng = np.random.default_rng(0)
    codes = [None] * len(texts)
    if model.has_code:
        codes = [rng.integers(-99, 99, model.sizes.code_size) if index % 3 else None for index in range(len(texts))]
    memory_BD = plain.memory(codes)
    for ours, theirs in zip(fast.score(texts, first, memory_BD), plain.score(texts, first, memory_BD)):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_either_decoder_reads_what_the_other_wrote(
    integer_model: MakeModel, draw_windows: Draw, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from modeling_eem.codec.fast_decoder import FastDecoder

    model = integer_model(kind)
    windows, contexts = draw_windows(model, 7)
    lengths = list(map(len, windows))
    payloads = {}
    for decoder in (FastDecoder, PlainDecoder):
        monkeypatch.setattr(model, "_decoder", decoder(model.sizes, model.tensors))
        payloads[decoder] = model.encode_windows(windows, contexts)
        assert model.decode_windows(payloads[FastDecoder], lengths, contexts) == windows
    assert payloads[FastDecoder] == payloads[PlainDecoder]


@pytest.mark.parametrize("kind", ["flat", "heads"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_mixing_bias_gives_the_plain_scores(
    integer_model: MakeModel, draw_windows: Draw, kind: str, sign: int
) -> None:
    """128 sums of weights beside it, which the packed bias takes off, pass 2^31."""
    from modeling_eem.codec.fast_decoder import FastDecoder

    model = integer_model(kind)
    tensors = dict(model.tensors)
    for layer in range(model.sizes.num_layers):
        free = SUM_LIMIT - ACTIVATION_LIMIT * row_sums(tensors[f"{layer}.mixing.weight"], model.sizes)
        tensors[f"{layer}.mixing.bias"] = (sign * free).astype(np.int32)
        scale = tensors[f"{layer}.mixing.scale"]
        tensors[f"{layer}.mixing.scale"] = np.full_like(scale, (16 if model.sizes.num_heads else 2**12) / 2**31)
    check_tensors(model.sizes, tensors)
    windows, _ = draw_windows(model, 6)
    texts = [[model.sizes.bos_token_id, *window] for window in windows]
    plain, fast = (decoder(model.sizes, tensors) for decoder in (PlainDecoder, FastDecoder))
    memory_BD = plain.memory([None] * len(texts))
    first = [1] * len(texts)
    for ours, theirs in zip(fast.score(texts, first, memory_BD), plain.score(texts, first, memory_BD)):
        assert np.array_equal(ours, theirs)
