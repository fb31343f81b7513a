"""Training steps of the published sizes in bfloat16: tokens a second, and the share of the GPU's peak (MFU)."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from figures import Figure
from gpu_scale import Scale
from paired import gpu_megabytes, seconds
from plain import PlainEEM
from torch import Tensor, nn
from training_cases import DEVICE, check_equal, step_of
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from modeling_eem import EEMConfig, EEMForCausalLM, kernels
from modeling_eem.models.modeling_masked_mixer import MaskedMixerBlock
from modeling_eem.report import Table
from modeling_eem.training import TOKEN_LOSSES, training_flops
from modeling_eem.training.token_loss_head import TokenLossHead
from modeling_eem.training.token_losses import TokenLossOptions
from modeling_eem.training.training_forward import forward_replaced

# Dense bfloat16 products with float32 sums, FLOPs a second, from the makers' data sheets.
NOMINAL_PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
PEAK_SIZE = 8192


@dataclass(frozen=True)
class Trained:
    """One model's steps, made in one way.

    Attributes:
        seconds: of each timed step.
        flops: of a step, useful ones: products of the forward and the backward, of a mixing its triangle only.
        megabytes: the most that PyTorch held on the GPU in a step, weights included; None on a CPU.
    """

    model: str
    way: str
    parameters: int
    tokens: int
    seconds: list[float]
    flops: float
    megabytes: float | None

    def share(self, peak: float) -> float:
        """MFU, in percent of a peak in FLOPs a second."""
        return 100 * self.flops / statistics.median(self.seconds) / peak


def bfloat16_peak(scale: Scale) -> tuple[float, str]:
    """FLOPs a second, and where the number is from: the data sheet, or for an unknown device one product here."""
    if DEVICE == "cuda":
        name = torch.cuda.get_device_name()
        for known, peak in NOMINAL_PEAKS.items():
            if all(word in name for word in known.split()):
                return peak, "its data sheet's"
    size = min(PEAK_SIZE, scale.peak_size)
    a, b = torch.randn(2, size, size, device=DEVICE, dtype=torch.bfloat16)
    torch.mm(a, b)
    return 2 * size**3 / min(seconds(lambda: torch.mm(a, b)) for _ in range(5)), f"of a product of {size} squared"


def llama_sizes(scale: Scale, width: int, length: int) -> dict:
    return {
        "vocab_size": scale.vocabulary,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": scale.layers,
        "num_attention_heads": 4,
        "max_position_embeddings": length,
    }


def eem_medium(scale: Scale) -> EEMForCausalLM:
    """Llama into Llama twice as wide: configs/eem/transformer-medium.yaml."""
    wide, narrow = scale.llama_width, scale.llama_width // 2
    return EEMForCausalLM(
        EEMConfig(
            encoder_config={"model_type": "llama", **llama_sizes(scale, narrow, scale.length)},
            decoder_config={"model_type": "llama", **llama_sizes(scale, wide, scale.length + 1)},
            bottleneck_size=scale.code,
            random_prefix_probability=0.1,
        )
    )


def eem_mixer(scale: Scale) -> EEMForCausalLM:
    """Mixer into mixer four times as wide: configs/eem/mixer.yaml."""
    common = {"vocab_size": scale.vocabulary, "num_hidden_layers": scale.layers}
    wide, narrow = scale.mixer_width, scale.mixer_width // 4
    return EEMForCausalLM(
        EEMConfig(
            encoder_config={**common, "hidden_size": narrow, "max_position_embeddings": scale.length},
            decoder_config={**common, "hidden_size": wide, "max_position_embeddings": scale.length + 1},
            bottleneck_size=scale.code,
        )
    )


def causal_llama(scale: Scale) -> LlamaForCausalLM:
    """The causal baseline: configs/causal/transformer.yaml."""
    return LlamaForCausalLM(LlamaConfig(**llama_sizes(scale, scale.llama_width, scale.length)))


MODELS: dict[str, Callable[[Scale], PreTrainedModel]] = {
    "EEM medium": eem_medium,
    "EEM mixer": eem_mixer,
    "causal Llama": causal_llama,
}


def useful_flops(model: PreTrainedModel, length: int) -> int:
    """FLOPs of forward and backward for a row that fills the context, without a dense mixing's upper triangles."""
    wasted = 0
    for block in model.modules():
        if isinstance(block, MaskedMixerBlock):
            rows, features = block.mixing.bias.shape[-1], block.mlp_layernorm.normalized_shape[0]
            wasted += 3 * 2 * block.mixing.kernel_size * features * rows * (rows - 1) // 2
    with kernels.plain():
        return training_flops(model, length) - wasted


def trained(scale: Scale, repeats: int) -> Iterator[Trained]:
    """Each model's steps in our way, eager and compiled, and in the plain one: rounds in turn."""
    for name, make in MODELS.items():
        torch.manual_seed(0)
        ours = make(scale).to(DEVICE).train()
        flops = scale.rows * useful_flops(ours, scale.length)
        ids_BT = torch.randint(scale.vocabulary, (scale.rows, scale.length), device=DEVICE)
        ways = dict(_ways(ours, ids_BT, scale))
        took: dict[str, list[float]] = {way: [] for way in ways}
        memory = {way: _megabytes(step) for way, step in ways.items()}  # warms up, and compiles
        for _ in range(repeats):
            for way, step in ways.items():
                took[way].append(seconds(step))
        for way in ways:
            yield Trained(name, way, ours.num_parameters(), ids_BT.numel(), took[way], flops, memory[way])
        del ours, ways
        torch.compiler.reset()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


def _ways(ours: PreTrainedModel, ids_BT: Tensor, scale: Scale) -> Iterator[tuple[str, Callable[[], None]]]:
    """Steps of the same loss, which is compared in float32 first."""
    if isinstance(ours, EEMForCausalLM):
        plain = PlainEEM(ours).train()
        rival, their_loss = "plain", lambda: plain(ids_BT)

        def loss() -> Tensor:
            return ours(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
    else:
        plain = ours
        head = TokenLossHead(ours, TOKEN_LOSSES["cross_entropy"], TokenLossOptions())
        rival, their_loss = (
            "transformers'",
            lambda: plain(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss,
        )

        def loss() -> Tensor:
            with forward_replaced(ours, head):
                return ours(input_ids=ids_BT, labels=ids_BT).loss

    with torch.no_grad():
        check_equal(loss().item(), their_loss().item(), type(ours).__name__)
    yield "ours", _step(ours, loss)
    yield "ours, compiled", _step(ours, torch.compile(loss, backend=scale.compiler))
    yield rival, _step(plain, their_loss)


def _step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    def low() -> Tensor:
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            return loss()

    return step_of(model, low)


def _megabytes(run: Callable[[], None]) -> float | None:
    run()
    held = gpu_megabytes(run)
    return held and held[1]


def training_figures(measured: list[Trained], peak: float, is_published: bool) -> list[Figure]:
    """The ratios, and of EEM medium the share of the peak; targets only for the published sizes."""
    figures = []
    for name in MODELS:
        *ours, theirs = [its for its in measured if its.model == name]
        for its in ours:
            ratios = [slow / fast for slow, fast in zip(theirs.seconds, its.seconds)]
            has_target = is_published and name.startswith("EEM") and its.way.endswith("compiled")
            what = f"training {name}, {its.way}, speed over the {theirs.way} step"
            figures.append(Figure(what, ratios, 2.0 if has_target else None))
    shares = [100 * its.flops / took / peak for its in measured[1:2] for took in its.seconds]
    figures.append(Figure("MFU of EEM medium, compiled", shares, 45 if is_published else None, unit="%"))
    return figures


def training_table(measured: list[Trained], scale: Scale, peak: float, origin: str) -> Table:
    """A row a model and way."""
    return Table(
        columns=("model", "way", "M params", "tokens/s", "TFLOP/s", "MFU, %", "peak MB"),
        rows=[
            (
                its.model,
                its.way,
                its.parameters / 1e6,
                its.tokens / statistics.median(its.seconds),
                its.flops / statistics.median(its.seconds) / 1e12,
                its.share(peak),
                its.megabytes,
            )
            for its in measured
        ],
        title=f"Training in bfloat16: {scale.rows} rows of {scale.length} tokens a step",
        notes=(
            f"{scale.layers} layers, vocabulary {scale.vocabulary:,}; forward, backward and fused AdamW, weights in "
            "float32. plain: the step as a research script would have it, with whole logits; transformers': its Llama "
            "with its own loss. An EEM's tokens pass its encoder and its decoder.",
            f"MFU: useful FLOPs over {peak / 1e12:.4g} TFLOP/s, {origin} bfloat16 peak.",
        ),
        formats={"M params": ".2f", "tokens/s": ",.0f", "TFLOP/s": ".3g", "MFU, %": ".1f", "peak MB": ",.0f"},
    )
