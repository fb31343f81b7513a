"""Token mixing, head and loss, exact entropies and generation on a GPU, beside the plain way to the same numbers."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from unittest.mock import patch

import torch
import torch.nn.functional as F
from exact_cases import two_full_passes_a_token
from figures import Figure
from gpu_scale import Scale
from gpu_training import causal_llama, eem_medium
from paired import gpu_megabytes, paired_ratios, seconds
from part_cases import chunked_loss
from torch import Tensor
from training_cases import DEVICE
from transformers import PreTrainedModel

from modeling_eem import MaskedMixerConfig, MaskedMixerForCausalLM
from modeling_eem.entropy import ExactEntropy
from modeling_eem.kernels import cpu_mixing
from modeling_eem.models.mixing_masked_mixer import dense_token_mixing

BLOCKS = (128, 256, 512)  # columns of W that a product of the blocked way takes
ROUNDING = 2**-6  # of a sum in bfloat16, over its terms' size; blocks round each partial sum
ENTROPY_BATCH = 16384


def token_mixing_figures(scale: Scale, repeats: int) -> Iterator[Figure]:
    """Forward and both gradients in bfloat16: in blocks of columns, and by Triton, against the dense product."""
    for length in scale.mixing_lengths:
        torch.manual_seed(0)
        shape = (1, length, scale.mixing_rows, scale.mixer_width)
        inputs = [torch.randn(1, length, length, 1) / length**0.5, torch.randn(1, length), torch.randn(shape)]
        tensors = [x.to(DEVICE, torch.bfloat16).requires_grad_() for x in inputs]
        upstream = torch.randn(shape).to(DEVICE, torch.bfloat16)

        def run(mix: Callable[..., Tensor], tensors: list[Tensor] = tensors, upstream: Tensor = upstream) -> Tensor:
            y_HTBE = mix(*tensors, True)
            torch.autograd.grad(y_HTBE, tensors, upstream)
            return y_HTBE.detach()

        dense = partial(run, dense_token_mixing)
        for name, context, mix in _mixings():
            with context:
                distance = (run(mix) - dense()).float().norm() / dense().float().norm()
                if not distance < ROUNDING:
                    raise AssertionError(f"token mixing {name} is {distance:.2g} of its length from the dense one")
                ratios = paired_ratios(partial(run, mix), dense, repeats)
            yield Figure(f"token mixing, n = {length}, {name}, speed over dense", ratios)


def _mixings() -> Iterator[tuple[str, object, Callable[..., Tensor]]]:
    for size in BLOCKS:
        yield f"in blocks of {size}", patch.object(cpu_mixing, "BLOCK_SIZE", size), cpu_mixing._BlockMixing.apply
    if DEVICE == "cuda":
        from modeling_eem.kernels.cuda import triangle_token_mixing

        yield "by Triton", nullcontext(), triangle_token_mixing


def head_inputs(tokens: int, width: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """The head's inputs, its weights in float32, and labels."""
    torch.manual_seed(0)
    hidden_ND = torch.randn(tokens, width, device=DEVICE).bfloat16().requires_grad_()
    weight_VD = (torch.randn(vocabulary, width, device=DEVICE) / width**0.5).requires_grad_()
    return hidden_ND, weight_VD, torch.randint(vocabulary, (tokens,), device=DEVICE)


def head_gradients(loss: Callable[..., Tensor], inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """One pass and its gradients, under autocast; the loss a token."""
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        total = loss(*inputs)
    torch.autograd.grad(total, inputs[:2])
    return total.detach() / len(inputs[2])


def whole_logits(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    """As transformers has it: logits in bfloat16, their softmax in float32."""
    return F.cross_entropy(F.linear(hidden_ND, weight_VD).float(), labels_N, reduction="sum")


def head_figures(scale: Scale, repeats: int) -> Iterator[Figure]:
    """Head and loss in chunks against whole logits: time and peak memory."""
    for vocabulary in scale.head_vocabularies:
        sizes = scale.head_tokens, scale.llama_width, vocabulary
        inputs = head_inputs(*sizes)
        ours, theirs = (partial(head_gradients, loss, inputs) for loss in (chunked_loss, whole_logits))
        if not torch.allclose(ours(), theirs(), rtol=1e-2):
            raise AssertionError(f"head and loss: ours gives {ours()}, whole logits {theirs()}")
        what = f"head and loss, {scale.head_tokens:,} tokens, vocabulary {vocabulary:,}"
        ratios = paired_ratios(ours, theirs, repeats)
        yield Figure(f"{what}, time over whole logits'", [1 / ratio for ratio in ratios])
        held = [gpu_megabytes(run) for run in (ours, theirs)]
        if None in held:  # a CPU's memory is measured in `make bench`
            continue
        megabytes = [most - before for before, most in held]
        target = 0.1 if scale.head_tokens * vocabulary > 1e8 else None
        note = f"{what}: {megabytes[0]:.0f} and {megabytes[1]:.0f} MB beside inputs and weights."
        share = megabytes[0] / megabytes[1]
        yield Figure(f"{what}, peak memory over whole logits'", [share], target, is_ceiling=True, notes=[note])


def entropy_figures(scale: Scale, repeats: int) -> Iterator[Figure]:
    """Exact entropies of one row by EEM medium in float32, against two full-width passes a token; values compared."""
    torch.manual_seed(0)
    model = eem_medium(scale).to(DEVICE).eval()
    row_T = torch.randint(scale.vocabulary, (scale.entropy_tokens,), device=DEVICE)
    row_T[0] = model.config.bos_token_id
    estimator = ExactEntropy(model, ENTROPY_BATCH)
    values = {}

    def ours() -> None:
        values["ours"] = estimator(input_ids=row_T[None]).values[0, 1:]

    def theirs() -> None:
        values["theirs"] = two_full_passes_a_token(model, row_T, ENTROPY_BATCH).cpu()

    ours()  # the longest kernels are chosen here; theirs takes many seconds, and is not run to warm up
    ratios = paired_ratios(ours, theirs, min(repeats, 2), warm_up=False)
    apart = (values["ours"] - values["theirs"]).abs().max().item()
    if apart > 2e-3:  # the plain way sums in float32
        raise AssertionError(f"exact entropies differ by {apart} nats")
    what = f"exact entropies of {scale.entropy_tokens} tokens, n = {scale.length}, over two passes a token"
    yield Figure(what, ratios, notes=[f"Exact entropies: {scale.entropy_tokens / seconds(ours):,.0f} tokens/s."])


def generation_figures(scale: Scale, repeats: int) -> Iterator[Figure]:
    """Greedy generation in bfloat16 with the cache: a mixer over a Llama of the same width, and an EEM over it."""
    config = MaskedMixerConfig(
        vocab_size=scale.vocabulary,
        hidden_size=scale.llama_width,
        num_hidden_layers=scale.layers,
        max_position_embeddings=scale.length,
    )
    models = {
        "mixer": MaskedMixerForCausalLM(config),
        "EEM medium": eem_medium(scale),
        "Llama": causal_llama(scale),
    }
    for batch in scale.batches:
        prompt_BT = torch.randint(scale.vocabulary, (batch, scale.length - scale.new_tokens), device=DEVICE)
        runs = {
            name: partial(_generate, model.to(DEVICE, torch.bfloat16).eval(), prompt_BT, scale.new_tokens)
            for name, model in models.items()
        }
        llama = runs.pop("Llama")
        for name, run in runs.items():
            ratios = paired_ratios(run, llama, min(repeats, 3))
            speed = batch * scale.new_tokens / seconds(run)
            what = f"generation, batch {batch}, {name}, speed over Llama's of the same width"
            yield Figure(what, ratios, notes=[f"Generation, batch {batch}: {name} {speed:,.0f} tokens/s."])


def _generate(model: PreTrainedModel, prompt_BT: Tensor, new_tokens: int) -> Tensor:
    return model.generate(
        prompt_BT, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, eos_token_id=None
    )


CASES: dict[str, Callable[[Scale, int], Iterator[Figure]]] = {
    "token-mixing": token_mixing_figures,
    "head-and-loss": head_figures,
    "exact-entropies": entropy_figures,
    "generation": generation_figures,
}
