"""Parts of a step: token mixing, head and loss, per-token weights; and what importing the package costs."""

import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from figures import Figure
from paired import paired_ratios, peak_megabytes
from torch import Tensor, nn
from training_cases import DEVICE, VOCABULARY, WIDTH, check_equal, mixer, ours_step, random_rows, step_of

from modeling_eem.models.loss_eem import linear_cross_entropy, linear_token_loss
from modeling_eem.models.mixing_masked_mixer import token_mixing
from modeling_eem.training.token_loss_head import TokenLossHead
from modeling_eem.training.token_losses import TOKEN_LOSSES, TokenLossOptions
from modeling_eem.training.training_forward import forward_replaced

HEAD_TOKENS = 4096


def token_mixing_alone(repeats: int) -> list[Figure]:
    """Forward and both gradients of one mixing, 8 rows of d = 512, against Conv1d and against a dense product."""
    figures = []
    for length, rivals in ((512, {"Conv1d": 1.6}), (1024, {"Conv1d": 1.6, "a dense product": 1.4})):
        ways = mixings(length)
        ours = ways.pop("ours")
        for rival, floor in rivals.items():
            check_equal(ours().sum().item() / 1e3, ways[rival]().sum().item() / 1e3, f"token mixing and {rival}")
            ratios = paired_ratios(ours, ways[rival], repeats)
            figures.append(Figure(f"token mixing alone, n = {length}, against {rival}", ratios, floor))
    return figures


def mixings(length: int) -> dict[str, Callable[[], Tensor]]:
    """Forward and both gradients of one mixing, in several ways."""
    weight_TT = torch.randn(length, length, device=DEVICE).tril().div_(length**0.5).requires_grad_()
    bias_T = torch.zeros(length, device=DEVICE, requires_grad=True)
    x_BTD = torch.randn(8, length, 512, device=DEVICE, requires_grad=True)
    x_TBD = x_BTD.detach().transpose(0, 1).contiguous().requires_grad_()
    grad_BTD = torch.randn(8, length, 512, device=DEVICE)
    grad_TBD = grad_BTD.transpose(0, 1).contiguous()

    def ours() -> Tensor:
        mixed = token_mixing(weight_TT[None, :, :, None], bias_T[None], x_TBD[None], is_causal=True)[0]
        torch.autograd.grad(mixed, (weight_TT, bias_T, x_TBD), grad_TBD)
        return mixed.detach()

    def convolved() -> Tensor:
        mixed = F.conv1d(x_BTD, weight_TT.tril()[..., None], bias_T)
        torch.autograd.grad(mixed, (weight_TT, bias_T, x_BTD), grad_BTD)
        return mixed.detach()

    def dense() -> Tensor:
        mixed = weight_TT.tril() @ x_BTD + bias_T[:, None]
        torch.autograd.grad(mixed, (weight_TT, bias_T, x_BTD), grad_BTD)
        return mixed.detach()

    return {"ours": ours, "Conv1d": convolved, "a dense product": dense}


def _head() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden_ND = torch.randn(HEAD_TOKENS, WIDTH, device=DEVICE, requires_grad=True)
    weight_VD = (torch.randn(VOCABULARY, WIDTH, device=DEVICE) / WIDTH**0.5).requires_grad_()
    labels_N = torch.randint(VOCABULARY, (HEAD_TOKENS,), device=DEVICE)
    return hidden_ND, weight_VD, labels_N, torch.rand(HEAD_TOKENS, device=DEVICE)


def full_loss(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, weights_N: Tensor | None = None) -> Tensor:
    """Whole logits; with weights also the predictions' entropies, which a weighted loss is told."""
    logits_NV = hidden_ND @ weight_VD.T
    losses_N = F.cross_entropy(logits_NV, labels_N, reduction="none")
    if weights_N is None:
        return losses_N.sum()
    entropies_N = torch.distributions.Categorical(logits=logits_NV.detach()).entropy()
    return (losses_N * weights_N * (1 + entropies_N)).sum()


def chunked_loss(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, weights_N: Tensor | None = None) -> Tensor:
    """Ours."""
    if weights_N is None:
        return linear_cross_entropy(hidden_ND, weight_VD, labels_N)[0]

    def weighted(losses: Tensor, entropies: Tensor, index: slice) -> Tensor:
        return losses * weights_N[index] * (1 + entropies)

    return linear_token_loss(hidden_ND, weight_VD, labels_N, weighted, with_entropy=True)[0]


def head_and_loss(repeats: int) -> list[Figure]:
    """Head and loss of 4,096 tokens, with gradients, against whole logits: time and peak memory."""
    hidden_ND, weight_VD, labels_N, weights_N = _head()
    figures = []
    for what, weights, time_ceiling, memory_ceiling in (
        ("head and loss", None, 0.7, 1 / 8),
        ("head and loss with weights and predictive entropies", weights_N, 0.8, 1 / 5),
    ):

        def run(loss: Callable[..., Tensor], weights: Tensor | None = weights) -> tuple[Tensor, tuple[Tensor, ...]]:
            total = loss(hidden_ND, weight_VD, labels_N, weights)
            return total, torch.autograd.grad(total, (hidden_ND, weight_VD))

        check_equal(run(chunked_loss)[0].item(), run(full_loss)[0].item(), what)
        ratios = paired_ratios(lambda run=run: run(chunked_loss), lambda run=run: run(full_loss), repeats)
        figures.append(Figure(f"{what}, time over whole logits'", [1 / r for r in ratios], time_ceiling, True))
        megabytes = [_peak(name, weights is not None) for name in ("chunked_loss", "full_loss")]
        figures.append(
            Figure(
                f"{what}, peak memory over whole logits'",
                [megabytes[0] / megabytes[1]],
                memory_ceiling,
                True,
                notes=[f"{megabytes[0]:.0f} and {megabytes[1]:.0f} MB"],
            )
        )
    return figures


def _peak(loss: str, is_weighted: bool) -> float:
    setup = (
        "import torch\nimport part_cases\nhidden, weight, labels, weights = part_cases._head()\n"
        "torch.autograd.grad((hidden[:2] @ weight[:2].T).sum(), (hidden, weight))"
    )
    arguments = "hidden, weight, labels, weights" if is_weighted else "hidden, weight, labels"
    return peak_megabytes(f"torch.autograd.grad(part_cases.{loss}({arguments}), (hidden, weight))", setup)


def weighted_step(repeats: int) -> list[Figure]:
    """A training step whose tokens are weighted by their entropies, over a plain step of the same model."""
    input_ids = random_rows()
    entropies_BT = torch.rand(input_ids.shape, device=DEVICE) * 8
    figures = []
    for name in ("complement", "hinge", "mile"):
        plain, weighted = mixer(), mixer()
        head = TokenLossHead(weighted, TOKEN_LOSSES[name], TokenLossOptions())

        def loss(model: nn.Module = weighted, head: TokenLossHead = head) -> Tensor:
            with forward_replaced(model, head):
                return model(input_ids=input_ids, labels=input_ids, token_entropies=entropies_BT).loss

        ratios = paired_ratios(step_of(weighted, loss), ours_step(plain, input_ids), repeats)
        figures.append(
            Figure(
                f"a training step with the loss {name}, time over a plain step's", [1 / r for r in ratios], 1.05, True
            )
        )
    return figures


def import_time(repeats: int) -> list[Figure]:
    """Seconds that `import modeling_eem` takes after `import transformers` and what any model file of it imports."""
    program = (
        "import time, transformers, transformers.modeling_utils, transformers.generation.utils\n"
        "began = time.perf_counter()\nimport modeling_eem\nprint(time.perf_counter() - began)"
    )
    values = [
        float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
        for _ in range(repeats)
    ]
    return [Figure("import of modeling_eem beyond transformers", values, 0.3, True, "s")]


CASES = {
    "token-mixing": token_mixing_alone,
    "head-and-loss": head_and_loss,
    "weighted-step": weighted_step,
    "import": import_time,
}
