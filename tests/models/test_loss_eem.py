"""Head and cross-entropy in chunks, against PyTorch's on whole logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from modeling_eem import EEMForCausalLM, MaskedMixerForCausalLM, kernels
from modeling_eem.loading import has_plain_head
from modeling_eem.models import loss_eem
from modeling_eem.models.loss_eem import (
    CHUNK_SIZE,
    causal_lm_loss,
    linear_cross_entropy,
    linear_token_loss,
    next_token_targets,
    token_classification_loss,
)
from modeling_eem.training.flops import counted_flops

LENGTHS = [1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE + 7]


def _problem(num_tokens: int, vocab_size: int = 11) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head, labels (a quarter -100, the last token scored) and weights (some of them zero)."""
    hidden = torch.randn(num_tokens, 8, requires_grad=True)
    weight = torch.randn(vocab_size, 8, requires_grad=True)
    labels = torch.randint(vocab_size, (num_tokens,))
    labels[:-1][torch.rand(num_tokens - 1) < 0.25] = -100
    return hidden, weight, labels, torch.rand(num_tokens).round(decimals=1)


def _expected(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """In float64, on whole logits."""
    losses = F.cross_entropy(hidden.double() @ weight.double().T, labels, reduction="none")
    return (losses if weights is None else losses * weights).sum(), losses


@pytest.fixture(params=[None, 100], ids=["chunks", "blocks"])
def block_numbers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As tests' vocabularies are, a chunk is one block; so also with blocks of nine tokens."""
    if request.param:
        monkeypatch.setattr(loss_eem, "BLOCK_NUMBERS", request.param)


@pytest.mark.usefixtures("block_numbers")
@pytest.mark.parametrize("is_weighted", [True, False])
@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_chunks_equal_whole_logits(num_tokens: int, is_weighted: bool) -> None:
    hidden, weight, labels, weights = _problem(num_tokens)
    weights = weights if is_weighted else None
    total, losses = linear_cross_entropy(hidden, weight, labels, weights)
    expected_total, expected_losses = _expected(hidden, weight, labels, weights)
    torch.testing.assert_close(total.double(), expected_total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.double(), expected_losses, rtol=1e-5, atol=1e-5)
    assert not losses[labels == -100].any() and total.dtype == losses.dtype == torch.float32
    # A factor after the sum, such as the division by the number of labels, must reach the gradients.
    actual = torch.autograd.grad(total * 0.3, [hidden, weight])
    expected = torch.autograd.grad(expected_total * 0.3, [hidden, weight])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("block_numbers")
@pytest.mark.parametrize("trained", [[], ["hidden"], ["weight"]])
def test_a_frozen_input_gets_no_gradient_and_changes_none(trained: list[str]) -> None:
    hidden, weight, labels, weights = _problem(40)
    _expected(hidden, weight, labels, weights)[0].backward()
    inputs = {"hidden": hidden, "weight": weight}
    copies = {name: x.detach().clone().requires_grad_(name in trained) for name, x in inputs.items()}
    total, _ = linear_cross_entropy(copies["hidden"], copies["weight"], labels, weights)
    assert total.requires_grad == bool(trained)
    if trained:
        total.backward()
    for name, x in copies.items():
        if name in trained:
            torch.testing.assert_close(x.grad, inputs[name].grad, rtol=1e-4, atol=1e-5)
        else:
            assert x.grad is None


def test_only_the_total_carries_a_gradient() -> None:
    hidden, weight, labels, weights = _problem(5)
    total, losses = linear_cross_entropy(hidden, weight, labels, weights.requires_grad_())
    assert total.requires_grad and not losses.requires_grad
    total.backward()
    assert weights.grad is None, "loss weights are constants"


TOKEN_LOSSES: dict[str, Callable[..., Tensor]] = {
    "distance": lambda losses, entropies, chunk, weights: (losses - 3 * weights[chunk]).abs(),
    "square": lambda losses, entropies, chunk, weights: weights[chunk] * losses**2,
    "times entropy": lambda losses, entropies, chunk, weights: losses * entropies.detach() * weights[chunk],
}


@pytest.mark.parametrize("name", TOKEN_LOSSES)
@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_functions_of_the_cross_entropy(num_tokens: int, name: str) -> None:
    """Of each token's own place in the batch; the predictions' entropies come along, as constants."""
    hidden, weight, labels, weights = _problem(num_tokens)

    def token_loss(losses: Tensor, entropies: Tensor | None, chunk: slice) -> Tensor:
        return TOKEN_LOSSES[name](losses, entropies, chunk, weights)

    total, losses, entropies = linear_token_loss(hidden, weight, labels, token_loss, with_entropy=True)
    log_probs = (hidden.double() @ weight.double().T).log_softmax(-1)
    expected_losses = F.nll_loss(log_probs, labels, reduction="none")
    expected_entropies = -(log_probs.exp() * log_probs).sum(-1)
    torch.testing.assert_close(losses.double(), expected_losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies.double(), expected_entropies, rtol=1e-4, atol=1e-5)
    is_scored = labels != -100
    expected = token_loss(expected_losses, expected_entropies, slice(0, num_tokens))[is_scored].sum()
    torch.testing.assert_close(total.double(), expected, rtol=1e-4, atol=1e-4)
    assert total.requires_grad and not losses.requires_grad and not entropies.requires_grad
    actual = torch.autograd.grad(total * 0.3, [hidden, weight])
    torch.testing.assert_close(actual, torch.autograd.grad(expected * 0.3, [hidden, weight]), rtol=1e-3, atol=1e-4)


def test_entropies_only_where_asked_for() -> None:
    hidden, weight, labels, _ = _problem(5)
    assert linear_token_loss(hidden, weight, labels, lambda losses, entropies, chunk: losses)[2] is None


def test_large_logits_do_not_overflow() -> None:
    hidden, weight = torch.full((3, 2), 500.0, requires_grad=True), torch.eye(2)
    total, losses = linear_cross_entropy(hidden * torch.tensor([1.0, -1.0]), weight, torch.tensor([0, 1, 0]))
    assert losses.tolist() == [0.0, 1000.0, 0.0]
    total.backward()
    assert hidden.grad.isfinite().all()


@pytest.mark.usefixtures("block_numbers")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_products_with_a_float32_softmax(dtype: torch.dtype) -> None:
    """Under autocast and for weights of low precision: the losses are those of the rounded products, in float32."""
    hidden, weight, labels, weights = _problem(CHUNK_SIZE + 5)
    logits = (hidden.to(dtype) @ weight.to(dtype).T).float()
    expected = F.cross_entropy(logits, labels, reduction="none")
    with torch.autocast("cpu", dtype):
        total, losses = linear_cross_entropy(hidden, weight, labels, weights)
    low, low_losses = linear_cross_entropy(hidden.to(dtype), weight.to(dtype), labels, weights)
    for actual in (losses, low_losses):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    grads = torch.autograd.grad(_expected(hidden, weight, labels, weights)[0], [hidden, weight])
    for loss in (total, low):
        actual = torch.autograd.grad(loss, [hidden, weight])
        assert all(grad.dtype == torch.float32 for grad in actual)
        for grad, expected_grad in zip(actual, grads):
            assert (grad - expected_grad).norm() < 0.02 * expected_grad.norm()


class _LargestTensor(TorchDispatchMode):
    """The most elements that any operation has returned, backward included."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return result


@pytest.mark.parametrize("make", [MaskedMixerForCausalLM, EEMForCausalLM])
def test_training_never_holds_the_logits_whole(
    make: type, backbone_config: Callable[..., Any], eem_config: Callable[..., Any]
) -> None:
    vocab_size, tokens = 3000, 80 * 16
    config = (
        backbone_config(vocab_size=vocab_size)
        if make is MaskedMixerForCausalLM
        else eem_config(
            encoder_config=backbone_config(vocab_size=vocab_size, hidden_size=16, position_alignment="right"),
            decoder_config=backbone_config(vocab_size=vocab_size, max_position_embeddings=17),
        )
    )
    model = make(config).train()
    input_ids = torch.randint(vocab_size, (80, 16))
    with _LargestTensor() as largest:
        model(input_ids, labels=input_ids).loss.backward()
    assert CHUNK_SIZE * vocab_size <= largest.numel < tokens * vocab_size


# The training loss


HEADS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Linear(8, 11, bias=False),
    "with a bias": lambda: nn.Linear(8, 11),
    "adapter": lambda: nn.Sequential(nn.Linear(8, 11, bias=False), nn.Tanh()),
}


@pytest.mark.parametrize("keeps_logits", [True, False])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_causal_lm_loss(head: Callable[[], nn.Module], keeps_logits: bool) -> None:
    """Any head is honoured: a bias, an adapter. Unscored tokens are NaN and count nowhere."""
    lm_head, hidden = head(), torch.randn(3, 6, 8, requires_grad=True)
    targets = torch.randint(11, (3, 6)).masked_fill(torch.rand(3, 6) < 0.3, -100)
    weights = torch.rand(3, 6)
    logits = lm_head(hidden) if keeps_logits else None
    loss, losses = causal_lm_loss(hidden, lm_head, targets, weights, logits_BTV=logits)
    expected = F.cross_entropy(lm_head(hidden).transpose(1, 2), targets, reduction="none")
    is_scored = targets != -100
    torch.testing.assert_close(losses[is_scored], expected[is_scored])
    assert losses[~is_scored].isnan().all() and not losses.requires_grad
    expected_loss = (expected * weights).sum() / is_scored.sum()
    torch.testing.assert_close(loss, expected_loss)
    inputs = [hidden, *lm_head.parameters()]
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected_loss, inputs))


def test_a_subclass_of_linear_is_called_not_bypassed() -> None:
    """Quantized and adapted layers are subclasses of Linear whose weight is not what they apply."""

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    lm_head, hidden = Doubled(8, 11, bias=False), torch.randn(1, 6, 8)
    targets = torch.randint(11, (1, 6))
    expected = F.cross_entropy(lm_head(hidden)[0], targets[0])
    torch.testing.assert_close(causal_lm_loss(hidden, lm_head, targets)[0], expected)


@pytest.mark.parametrize("num_items", [7, torch.tensor(7)])
def test_weights_of_zero_stay_in_the_denominator(num_items: int | Tensor) -> None:
    lm_head, hidden = nn.Linear(8, 11, bias=False), torch.randn(1, 6, 8)
    targets = torch.tensor([[1, -100, 3, 4, -100, 6]])
    weights = torch.tensor([[1.0, 1, 0, 0, 1, 1]])
    loss, losses = causal_lm_loss(hidden, lm_head, targets, weights)
    kept = losses[0, [0, 5]].sum()
    torch.testing.assert_close(loss, kept / 4)
    torch.testing.assert_close(causal_lm_loss(hidden, lm_head, targets, weights, num_items)[0], kept / 7)
    torch.testing.assert_close(causal_lm_loss(hidden, lm_head, targets)[0], losses.nanmean())


def test_output_t_predicts_token_t_plus_one() -> None:
    labels = torch.tensor([[5, 6, -100, 8], [1, 2, 3, 4]])
    assert next_token_targets(labels).tolist() == [[6, -100, 8, -100], [2, 3, 4, -100]]
    assert next_token_targets(None, labels) is labels, "labels shifted by the caller stay where they are"


# Token classification


def test_a_regression_loss_is_the_mean_squared_error() -> None:
    logits = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]], requires_grad=True)
    loss = token_classification_loss(logits, torch.tensor([[0.0, float("nan"), -100.0, 6.0]]))
    assert loss.item() == pytest.approx((1 + 4) / 2)
    loss.backward()
    assert logits.grad.flatten().tolist() == [1.0, 0.0, 0.0, -2.0]


def test_regression_takes_integer_labels_and_is_float32() -> None:
    loss = token_classification_loss(torch.ones(1, 3, 1, dtype=torch.bfloat16), torch.tensor([[3, -100, 1]]))
    assert loss.dtype == torch.float32 and loss.item() == 2.0


def test_a_classification_loss_is_the_mean_cross_entropy() -> None:
    logits, labels = torch.randn(2, 5, 3), torch.tensor([[0, 1, 2, -100, 1], [-100, 1, 1, 0, 2]])
    expected = -logits.log_softmax(-1)[labels >= 0].gather(1, labels[labels >= 0][:, None]).mean()
    torch.testing.assert_close(token_classification_loss(logits, labels), expected)


@pytest.mark.parametrize(
    "model_type, changes, is_plain",
    [
        ("masked_mixer", {}, True),
        ("llama", {}, True),
        ("gemma2", {}, False),  # soft-capped at 30, far above the logits of a fresh model
        ("granite", {"logits_scaling": 2.0}, False),
        ("phi", {}, False),  # its head has a bias
    ],
)
def test_a_head_is_plain_if_only_its_weight_acts(model_type: str, changes: dict[str, Any], is_plain: bool) -> None:
    """Small logits of a fresh model do not hide what is done to large ones; nothing stays behind in the model."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "max_position_embeddings": 16}
    heads = {} if model_type == "masked_mixer" else {"num_attention_heads": 2, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, vocab_size=40, pad_token_id=0, **sizes, **heads, **changes)
    ).train()
    assert has_plain_head(model) is is_plain
    assert model.training and not model.get_output_embeddings()._forward_hooks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_is_not_the_losss(dtype: torch.dtype) -> None:
    """As where transformers builds a model in another dtype than PyTorch's default."""
    hidden, weight, labels, _ = _problem(9)
    expected = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels)[0], (hidden, weight))
    torch.set_default_dtype(dtype)
    try:
        actual = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels)[0], (hidden, weight))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_many_batches_have_few_shapes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN compiles each shape once and keeps it: a run over rows of all lengths grew by 3 to 8 MB a step."""
    shapes = set()

    def product(x: Tensor, weight: Tensor) -> Tensor:
        shapes.add(tuple(x.shape))
        return F.linear(x, weight)

    monkeypatch.setattr(loss_eem, "product", product)
    for num_tokens in range(1, 2 * CHUNK_SIZE, 37):
        hidden, weight, labels, _ = _problem(num_tokens)
        linear_cross_entropy(hidden.to(dtype), weight.to(dtype), labels)[0].backward()
    many = {shape[0] for shape in shapes if shape[0] > loss_eem.ROW_MULTIPLE}
    assert 1 < len(many) < CHUNK_SIZE // loss_eem.ROW_MULTIPLE
    assert all(count % loss_eem.ROW_MULTIPLE == 0 for count in many)


def test_float16_gradients_of_many_tokens_are_finite() -> None:
    """Their sum is beyond float16 (79,200), their mean is not; a scaled loss's slope may be beyond it, too."""
    hidden = torch.full((20_000, 8), 4.0, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(100, 8, dtype=torch.float16, requires_grad=True)
    labels = torch.zeros(20_000, dtype=torch.long)
    total, _ = linear_cross_entropy(hidden, weight, labels)
    (total / len(labels)).backward()
    exact = weight.detach().float().requires_grad_()
    F.cross_entropy(hidden.detach().float() @ exact.T, labels).backward()
    torch.testing.assert_close(weight.grad.float(), exact.grad, rtol=2e-3, atol=1e-3)
    few = torch.full((2, 8), 1e-3, dtype=torch.float16, requires_grad=True)
    total, _ = linear_cross_entropy(few, weight, labels[:2])
    (total * 2.0**18).backward()
    assert few.grad.isfinite().all() and weight.grad.isfinite().all()


@pytest.mark.parametrize("loss", [linear_cross_entropy, lambda h, w, y: linear_token_loss(h, w, y, lambda ce, *_: ce)])
def test_without_gradients_none_are_computed(loss: Callable[..., Any]) -> None:
    hidden, weight, labels, _ = _problem(70)
    products = 2 * len(weight) * weight.shape[1]
    for grad_mode, factor in ((torch.enable_grad, 3), (torch.no_grad, 1)):
        with grad_mode(), kernels.plain():
            flops = counted_flops(lambda: loss(hidden, weight, labels))
        assert flops == factor * 128 * products  # 70 tokens are filled up to 128
