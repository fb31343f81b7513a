"""Autoencoders: one vector, its expansion, and all tokens regenerated in one pass."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling_eem import EEMAutoencoder, EEMAutoencoderConfig
from modeling_eem.models.modeling_eem_autoencoder import Repeat, Unroll
from modeling_eem.models.quantization_eem import CODE_FORMATS

PAIRS = [("masked_mixer", "masked_mixer"), ("llama", "llama"), ("masked_mixer", "llama"), ("gpt_neox", "qwen2")]
EVERY = {
    f"{encoder}-{decoder}, {expansion}, {'bottleneck' if size else 'whole'}": (encoder, decoder, expansion, size)
    for (encoder, decoder), expansion, size in itertools.product(PAIRS, ["repeat", "unroll"], [6, None])
}


@pytest.fixture
def make_autoencoder(backbone_config: Callable[..., Any]) -> Callable[..., EEMAutoencoder]:
    """An encoder of width 16 and a decoder of width 32; a masked mixer encoder is right-aligned."""

    def make(
        encoder: str = "masked_mixer",
        decoder: str = "masked_mixer",
        is_causal: bool = True,
        widths: tuple[int, int] = (16, 32),
        **changes: Any,
    ) -> EEMAutoencoder:
        alignment = {"position_alignment": "right"} if encoder == "masked_mixer" else {}
        causal = {} if is_causal else {"is_causal": False}
        return EEMAutoencoder(
            EEMAutoencoderConfig(
                encoder_config=backbone_config(encoder, hidden_size=widths[0], **alignment, **causal),
                decoder_config=backbone_config(decoder, hidden_size=widths[1], **causal),
                **changes,
            )
        ).eval()

    return make


@pytest.fixture(params=EVERY.values(), ids=EVERY)
def autoencoder(request: pytest.FixtureRequest, make_autoencoder: Callable[..., EEMAutoencoder]) -> EEMAutoencoder:
    encoder, decoder, expansion, size = request.param
    return make_autoencoder(encoder, decoder, memory_expansion=expansion, bottleneck_size=size)


def _ids(*shape: int) -> Tensor:
    return torch.randint(2, 40, shape)


# Expansions


def _naive_unroll(vectors: Tensor, positions: Tensor, linear: nn.Linear) -> Tensor:
    """For each position the features `i, i + 1, ..., i + E/2 - 1`, all modulo E, through the shared Linear."""
    width = vectors.shape[1]
    rows = []
    for vector, places in zip(vectors, positions.expand(len(vectors), -1)):
        windows = [torch.stack([vector[(int(i) % width + f) % width] for f in range(width // 2)]) for i in places]
        rows.append(torch.stack([linear.weight @ window + linear.bias for window in windows]))
    return torch.stack(rows)


@pytest.mark.parametrize("width", [2, 6, 8])
@pytest.mark.parametrize(
    "positions",
    [torch.arange(20)[None], torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]])],
    ids=["longer than the vector", "left-padded"],
)
def test_unroll_is_the_naive_loop(width: int, positions: Tensor) -> None:
    """Values, and gradients of the vector and the Linear."""
    vectors = torch.randn(2, width, requires_grad=True)
    unroll = Unroll(width, 5)
    assert sum(p.numel() for p in unroll.parameters()) == width // 2 * 5 + 5
    actual, expected = unroll(vectors, positions), _naive_unroll(vectors, positions, unroll.window_proj)
    torch.testing.assert_close(actual, expected)
    inputs, upstream = [vectors, *unroll.parameters()], torch.randn_like(expected)
    grads = (torch.autograd.grad(y, inputs, upstream) for y in (actual, expected))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("width, decoder_width", [(6, 6), (6, 4)])
def test_repeat_is_the_vector_everywhere(width: int, decoder_width: int) -> None:
    """As it is, or through a bridge where the widths differ."""
    vectors, repeat = torch.randn(2, width), Repeat(width, decoder_width)
    expanded = repeat(vectors, torch.arange(7)[None])
    bridged = vectors if width == decoder_width else vectors @ repeat.bridge.weight.T + repeat.bridge.bias
    assert bool(list(repeat.parameters())) == (width != decoder_width)
    torch.testing.assert_close(expanded, bridged[:, None].repeat(1, 7, 1))


# The model


def test_code_and_logits_follow_the_definition(autoencoder: EEMAutoencoder) -> None:
    input_ids = _ids(3, 12)
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    e = encoder.backbone(inputs_embeds=encoder.embed_tokens(input_ids), use_cache=False).last_hidden_state[:, -1]
    code, vector = e, e
    if autoencoder.config.bottleneck_size is not None:
        down, up = encoder.bottleneck.down, encoder.bottleneck.up
        code = e @ down.weight.T + down.bias
        vector = code @ up.weight.T + up.bias
    inputs = autoencoder.expansion(vector, torch.arange(12)[None])
    hidden = decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state
    output = autoencoder(input_ids, output_hidden_states=True)
    torch.testing.assert_close(output.code, code)
    torch.testing.assert_close(output.logits, hidden @ autoencoder.lm_head.weight.T)
    torch.testing.assert_close(autoencoder.encode(input_ids), code)
    assert len(output.hidden_states) == 3


def test_every_parameter_gets_a_gradient(autoencoder: EEMAutoencoder) -> None:
    input_ids = _ids(4, 16)
    autoencoder.train()(input_ids, labels=input_ids).loss.backward()
    assert [name for name, p in autoencoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("side", ["left", "right", "both", "holes"])
def test_padding_is_inert(
    autoencoder: EEMAutoencoder, side: str, pad_rows: Callable, assert_same_logits: Callable
) -> None:
    """A token's position is its rank among real tokens, in the encoder and in the expansion."""
    texts = [_ids(length) for length in (7, 1, 14, 12, 3)]
    for rows in (texts, texts[:1]):
        input_ids, mask = pad_rows(rows, side, width=14)
        batch = autoencoder(input_ids, attention_mask=mask)
        for row, (text, row_mask) in enumerate(zip(rows, mask)):
            alone = autoencoder(text[None])
            assert_same_logits(batch.code[row], alone.code[0])
            assert_same_logits(batch.logits[row, row_mask.bool()], alone.logits[0])


@pytest.mark.parametrize("kind", ["masked_mixer", "llama"])
def test_both_sides_may_see_all_tokens(
    kind: str, make_autoencoder: Callable[..., EEMAutoencoder], pad_rows: Callable, assert_same_logits: Callable
) -> None:
    autoencoder = make_autoencoder(kind, kind, is_causal=False, memory_expansion="unroll")
    texts = [_ids(length) for length in (7, 1, 14)]
    for side in ("left", "right", "holes"):
        input_ids, mask = pad_rows(texts, side, width=14)
        batch = autoencoder(input_ids, attention_mask=mask)
        for row, (text, row_mask) in enumerate(zip(texts, mask)):
            assert_same_logits(batch.logits[row, row_mask.bool()], autoencoder(text[None]).logits[0])


def test_labels_are_not_shifted(autoencoder: EEMAutoencoder, pad_rows: Callable) -> None:
    """Position t regenerates token t; padding and -100 are not scored; training in chunks gives the same."""
    input_ids, mask = pad_rows([_ids(length) for length in (7, 14, 3)], "left", width=14)
    labels = input_ids.clone()
    labels[1, 4:6] = -100
    output = autoencoder(input_ids, attention_mask=mask, labels=labels)
    is_scored = mask.bool() & (labels != -100)
    expected = F.cross_entropy(output.logits[is_scored], labels[is_scored])
    torch.testing.assert_close(output.loss, expected)
    chunked = autoencoder.train()(input_ids, attention_mask=mask, labels=labels)
    assert chunked.logits is None
    torch.testing.assert_close(chunked.loss, expected)
    parameters = list(autoencoder.parameters())
    grads = (torch.autograd.grad(loss, parameters) for loss in (chunked.loss, output.loss))
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)
    given = autoencoder(input_ids, attention_mask=mask, labels=labels, num_items_in_batch=is_scored.sum() * 2)
    torch.testing.assert_close(given.loss, expected / 2)


def test_a_code_alone_regenerates_the_text(autoencoder: EEMAutoencoder, pad_rows: Callable) -> None:
    """All n positions without a mask, else the positions the mask gives."""
    texts = [_ids(length) for length in (16, 5, 9)]
    for side in ("left", "right"):
        input_ids, mask = pad_rows(texts, side, width=16)
        output = autoencoder(input_ids, attention_mask=mask)
        again = autoencoder(code=output.code, attention_mask=mask)
        torch.testing.assert_close(again.logits[mask.bool()], output.logits[mask.bool()])
        ids = autoencoder.reconstruct(output.code, mask)
        assert torch.equal(ids[mask.bool()], output.logits.argmax(-1)[mask.bool()])
        whole = autoencoder.reconstruct(output.code)
        assert whole.shape == (3, 16) and whole.dtype == torch.long
        assert torch.equal(whole[0], output.logits[0].argmax(-1))
        if side == "right":
            assert torch.equal(whole[1, :5], ids[1, :5]), "a causal decoder does not see how long the text is"


def test_noise_and_rounding(make_autoencoder: Callable[..., EEMAutoencoder]) -> None:
    """As in the EEM: noise on what is encoded in training, rounding outside it."""
    torch.manual_seed(0)
    raw = make_autoencoder(bottleneck_size=6)
    torch.manual_seed(0)
    autoencoder = make_autoencoder(bottleneck_size=6, noise_scale=0.25, code_dtype="int4")
    input_ids = _ids(64, 12)
    code = autoencoder.encode(input_ids)
    torch.testing.assert_close(code, CODE_FORMATS["int4"].round(raw.encode(input_ids)))
    torch.testing.assert_close(autoencoder(input_ids).code, code)
    autoencoder.train()
    noise = autoencoder(input_ids).code - raw.encode(input_ids)
    assert noise.abs().max() <= 0.25 + 1e-5 and noise.min() < -0.23 and noise.max() > 0.23
    assert torch.equal(autoencoder(code=code).code, code)


def test_bad_input_is_refused(make_autoencoder: Callable[..., EEMAutoencoder]) -> None:
    autoencoder = make_autoencoder(bottleneck_size=6)
    input_ids, code = _ids(1, 16), torch.randn(1, 6)
    for call, message in (
        (lambda: autoencoder(), "either input_ids.*or code"),
        (lambda: autoencoder(input_ids, code=code), "either input_ids.*or code"),
        (lambda: autoencoder(_ids(1, 17)), "17 tokens.*max_position_embeddings=16"),
        (lambda: autoencoder(code=code, attention_mask=torch.ones(1, 17)), "17 tokens.*max_position_embeddings=16"),
        (lambda: autoencoder.encode(_ids(1, 17)), "17 tokens.*max_position_embeddings=16"),
        (lambda: autoencoder.encode(torch.tensor([[40]])), "holds 40, outside the vocabulary of 40"),
        (lambda: autoencoder.encode(input_ids, torch.zeros(1, 16)), "row 0 is all padding"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("expansion", ["repeat", "unroll"])
@pytest.mark.parametrize("width", [512, 1024])
def test_published_sizes_build(width: int, expansion: str) -> None:
    """8 + 8 layers, n = 512; four heads as `h (n² + n) + 2d² + 2d` a block."""
    shape = {"hidden_size": width, "num_hidden_layers": 8, "max_position_embeddings": 512, "num_mixing_heads": 4}
    config = EEMAutoencoderConfig(encoder_config=shape, decoder_config=shape, memory_expansion=expansion)
    with torch.device("meta"):
        model = EEMAutoencoder(config)
    block = 8 * width**2 + 9 * width + 4 * (512**2 + 512) + 2 * width**2 + 2 * width
    unrolling = (width // 2) * width + width if expansion == "unroll" else 0
    assert model.num_parameters() == 16 * block + 2 * 8000 * width + unrolling


# Learning


@pytest.mark.parametrize(
    "kind, expansion, learns",
    [
        ("masked_mixer", "repeat", True),
        ("masked_mixer", "unroll", True),
        ("llama", "unroll", True),
        ("llama", "repeat", False),
    ],
)
def test_regeneration_of_a_small_batch(
    kind: str, expansion: str, learns: bool, make_autoencoder: Callable[..., EEMAutoencoder]
) -> None:
    """Exact after 200 steps, from the codes alone; but not for a transformer whose inputs are the same everywhere.

    Attention averages equal values into equal values, so all its positions say the same, and the best it can say is
    how often the row holds each token.
    """
    autoencoder = make_autoencoder(kind, kind, widths=(32, 32), memory_expansion=expansion).train()
    input_ids = _ids(8, 16)
    optimizer = torch.optim.AdamW(autoencoder.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=200)
    for _ in range(200):
        autoencoder(input_ids, labels=input_ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    autoencoder.eval()
    regenerated = autoencoder.reconstruct(autoencoder.encode(input_ids))
    assert torch.equal(regenerated, input_ids) == learns
    if not learns:
        frequencies = F.one_hot(input_ids, 40).float().mean(1)
        floor = -(frequencies * frequencies.clamp(min=1e-9).log()).sum(-1).mean().item()
        assert autoencoder(input_ids, labels=input_ids).loss.item() >= floor - 1e-3
        assert (regenerated == regenerated[:, :1]).all()
        assert floor > 2
