"""Token mixing by Triton: the dense product's numbers and gradients, here by Triton's interpreter on a CPU.

Triton decides when it is imported whether it interprets, so each test runs in a process of its own; without Triton,
which PyTorch for a CPU does not bring, all are skipped.
"""

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

BEGINNING = """
import torch
from modeling_eem import kernels
from modeling_eem.kernels import cuda
from modeling_eem.models.mixing_masked_mixer import KERNELS, dense_token_mixing, token_mixing

torch.manual_seed(0)

def inputs(heads, length, texts, features, dtype=torch.float32):
    weight, bias = torch.randn(heads, length, length, 1) / length**0.5, torch.randn(heads, length)
    x = torch.randn(heads, length, texts, features)
    return [x.to(dtype).requires_grad_() for x in (weight, bias, x)]

def outputs_and_gradients(mix, tensors):
    y = mix(*tensors, True)
    upstream = torch.linspace(-1, 1, y.numel()).view_as(y).half()  # the same numbers in every dtype
    return [y, *torch.autograd.grad(y, tensors, upstream.to(y.dtype))]
"""


def _run(program: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING + program], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_triangle_equals_the_dense_product() -> None:
    """Around one tile and its multiples; above the diagonal the gradient of W is exactly zero."""
    _run("""
for heads, length, texts, features in ((1, 1, 1, 1), (1, 7, 3, 5), (2, 128, 2, 16), (1, 129, 3, 50), (2, 300, 1, 140)):
    tensors = inputs(heads, length, texts, features)
    ours = outputs_and_gradients(cuda.triangle_token_mixing, tensors)
    torch.testing.assert_close(ours, outputs_and_gradients(dense_token_mixing, tensors), rtol=1e-5, atol=1e-5)
    assert not ours[1][..., 0].triu(1).any()
""")


def test_what_stands_above_the_diagonal_does_not_count() -> None:
    _run("""
weight, bias, x = inputs(1, 140, 2, 9)
spoiled = weight.detach().masked_fill(torch.ones(140, 140).triu(1)[None, :, :, None].bool(), float("nan"))
clean, other = (cuda.triangle_token_mixing(w, bias, x, True) for w in (weight, spoiled))
assert torch.equal(clean, other)
""")


def test_half_precision_rounds_a_sum_once() -> None:
    """Within one rounding of the product of the same numbers in float64; Triton does not interpret bfloat16."""
    _run("""
tensors = inputs(1, 200, 2, 20, torch.float16)
exact = outputs_and_gradients(dense_token_mixing, [x.detach().double().requires_grad_() for x in tensors])
for one, other in zip(outputs_and_gradients(cuda.triangle_token_mixing, tensors), exact):
    assert ((one - other).abs() <= 2**-11 * other.abs() + 1e-4).all()
""")


def test_slices_and_gradients_of_one_input_alone() -> None:
    """A shorter text's corner of W, and of a right-aligned model the far one, are views."""
    _run("""
weight, bias, x = inputs(2, 150, 1, 8)
for rows in (slice(0, 70), slice(80, 150)):
    for needed in range(3):
        cut = [weight[:, rows, rows].detach(), bias[:, rows].detach(), x[:, rows].detach().mT.contiguous().mT]
        cut[needed].requires_grad_()
        ours, dense = (
            torch.autograd.grad(mix(*cut, True).square().sum(), cut[needed])
            for mix in (cuda.triangle_token_mixing, dense_token_mixing)
        )
        torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-4)
""")


def test_what_it_was_not_made_for_is_declined() -> None:
    _run("""
weight, bias, x = inputs(1, 9, 2, 4)
assert cuda.triangle_token_mixing(weight, bias, x, False) is None
assert cuda.triangle_token_mixing(weight.repeat(1, 1, 1, 2), bias, x, True) is None
assert cuda.triangle_token_mixing(weight.double(), bias.double(), x.double(), True) is None
class Shard(torch.Tensor): pass
assert cuda.triangle_token_mixing(weight.detach().as_subclass(Shard), bias, x, True) is None
""")


def test_models_use_it_only_when_asked() -> None:
    """A training step, a batch of cotangents by vmap, and autocast, all as the dense way has them."""
    _run("""
from modeling_eem import MaskedMixerConfig, MaskedMixerForCausalLM

before = dict(KERNELS)
sizes = dict(vocab_size=20, hidden_size=8, num_hidden_layers=2, max_position_embeddings=12)
model = MaskedMixerForCausalLM(MaskedMixerConfig(**sizes, num_mixing_heads=2))
ids = torch.randint(20, (3, 12))
calls = []
kernel = cuda.triangle_product

def gradients(autocast):
    with torch.autocast("cpu", dtype=torch.float16, enabled=autocast):
        loss = model(ids, labels=ids).loss
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

def batched():
    x = torch.randn(1, 12, 2, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weight, bias, _ = [p.detach() for p in inputs(1, 12, 2, 4)]
    y = token_mixing(weight, bias, x, True)
    cotangents = torch.eye(y.numel()).view(-1, *y.shape)
    torch.manual_seed(0)
    return torch.autograd.grad(y, x, cotangents, is_grads_batched=True)[0]

torch.manual_seed(0)
with kernels.plain():
    expected, expected_low, jacobian = gradients(False), gradients(True), batched()
cuda.triangle_product = lambda *arguments: calls.append(1) or kernel(*arguments)
with kernels.triton():
    torch.testing.assert_close(gradients(False), expected, rtol=1e-4, atol=1e-5)
    assert len(calls) == 4  # a forward and a backward a layer
    for one, other in zip(gradients(True), expected_low):
        assert one.dtype == other.dtype and (one - other).norm() <= 0.004 * other.norm() + 1e-3
    torch.manual_seed(0)
    torch.testing.assert_close(batched(), jacobian)
assert KERNELS == before and len(calls) > 8
""")
