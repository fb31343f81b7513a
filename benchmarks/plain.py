"""The plain implementation that ours is timed against: the method as a research script would write it.

Token mixing is a Conv1d over tokens whose weight is masked anew in every forward; heads and the unrolled windows are
Python loops; the loss takes the logits of all tokens, with the classes on axis 1. `load_mixer` and `load_autoencoder`
copy the weights of our models, and `PlainEEM` is made of one, so that the values can be compared before the clock is
started.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling_eem import EEMAutoencoder, EEMForCausalLM, MaskedMixerForCausalLM, MaskedMixerModel
from modeling_eem.models.modeling_masked_mixer import MaskedMixerBlock, MaskedMixerMixing


class PlainMixing(nn.Module):
    """`Conv1d(n, n, k)` whose channels are the tokens."""

    def __init__(self, length: int, kernel_size: int):
        super().__init__()
        self.conv = nn.Conv1d(length, length, kernel_size, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        self.conv.weight.data = self.conv.weight.permute(2, 0, 1).tril().permute(1, 2, 0).data.contiguous()
        return self.conv(x)


class PlainHeads(nn.Module):
    """Projections and mixings, head after head."""

    def __init__(self, width: int, length: int, num_heads: int, kernel_size: int):
        super().__init__()
        self.proj = nn.ModuleList([nn.Linear(width, width // num_heads) for _ in range(num_heads)])
        self.mixings = nn.ModuleList([PlainMixing(length, kernel_size) for _ in range(num_heads)])
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([mix(proj(x)) for proj, mix in zip(self.proj, self.mixings)], dim=-1))


class PlainBlock(nn.Module):
    def __init__(self, width: int, length: int, num_heads: int, kernel_size: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = PlainHeads(width, length, num_heads, kernel_size) if num_heads else PlainMixing(length, kernel_size)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class PlainMixer(nn.Module):
    """A causal masked mixer and its loss."""

    def __init__(
        self, vocab_size: int, width: int, length: int, layers: int, num_heads: int = 0, kernel_size: int = 1
    ):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList([PlainBlock(width, length, num_heads, kernel_size) for _ in range(layers)])
        self.head = nn.Linear(width, vocab_size, bias=False)

    def logits(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def forward(self, input_ids: Tensor) -> Tensor:
        logits_BVT = self.logits(input_ids).transpose(1, 2)[..., :-1].contiguous()
        return F.cross_entropy(logits_BVT, input_ids[:, 1:])


class PlainAutoencoder(nn.Module):
    """A mixer autoencoder with unrolled windows."""

    def __init__(self, vocab_size: int, width: int, length: int, layers: int):
        super().__init__()
        self.length = length
        self.embed = nn.Embedding(vocab_size, width)
        self.encoder = nn.ModuleList([PlainBlock(width, length, 0, 1) for _ in range(layers)])
        self.window = nn.Linear(width // 2, width)
        self.decoder = nn.ModuleList([PlainBlock(width, length, 0, 1) for _ in range(layers)])
        self.head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for block in self.encoder:
            x = block(x)
        vector = x[:, -1]
        width = vector.shape[-1]
        circle = torch.cat([vector, vector], dim=-1)
        windows = [self.window(circle[:, i % width : i % width + width // 2]) for i in range(self.length)]
        x = torch.stack(windows, dim=1)
        for block in self.decoder:
            x = block(x)
        return F.cross_entropy(self.head(x).transpose(1, 2).contiguous(), input_ids)


class PlainStack(nn.Module):
    """A mixer's blocks on embeddings, as many positions as they have rows."""

    def __init__(self, ours: MaskedMixerModel):
        super().__init__()
        config = ours.config
        sizes = (config.hidden_size, config.max_position_embeddings)
        self.blocks = nn.ModuleList([PlainBlock(*sizes, 0, 1) for _ in ours.layers])
        with torch.no_grad():
            for block, our_block in zip(self.blocks, ours.layers):
                _load_block(block, our_block)

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        for block in self.blocks:
            inputs_embeds = block(inputs_embeds)
        return inputs_embeds


class PlainEEM(nn.Module):
    """An entropy estimation model with a bottleneck whose code enters as a token, and its loss, on whole rows.

    Made of ours: flat mixers become Conv1d stacks, transformers' backbones are copied as they are.
    """

    def __init__(self, ours: EEMForCausalLM):
        super().__init__()
        eem = ours.model
        self.encoder_embed, self.embed, self.head = map(
            copy.deepcopy, (eem.encoder.embed_tokens, eem.embed_tokens, ours.lm_head)
        )
        self.down, self.up, self.proj = map(
            copy.deepcopy, (eem.encoder.bottleneck.down, eem.encoder.bottleneck.up, eem.memory_proj)
        )
        self.encoder, self.decoder = (
            PlainStack(stack) if isinstance(stack, MaskedMixerModel) else copy.deepcopy(stack)
            for stack in (eem.encoder.backbone, eem.decoder)
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        vector = _run(self.encoder, self.encoder_embed(input_ids))[:, -1]
        memory = self.proj(self.up(self.down(vector)))[:, None]
        hidden_BTD = _run(self.decoder, torch.cat([memory, self.embed(input_ids)], dim=1))
        logits_BVT = self.head(hidden_BTD).transpose(1, 2)[..., 1:-1].contiguous()
        return F.cross_entropy(logits_BVT, input_ids[:, 1:])


def _run(stack: nn.Module, inputs_embeds: Tensor) -> Tensor:
    if isinstance(stack, PlainStack):
        return stack(inputs_embeds)
    return stack(inputs_embeds=inputs_embeds, use_cache=False).last_hidden_state


@torch.no_grad()
def load_mixer(plain: PlainMixer, ours: MaskedMixerForCausalLM) -> None:
    """Our weights, in the plain model."""
    plain.embed.weight.copy_(ours.model.embed_tokens.weight)
    plain.head.weight.copy_(ours.lm_head.weight)
    for block, our_block in zip(plain.blocks, ours.model.layers):
        _load_block(block, our_block)


@torch.no_grad()
def load_autoencoder(plain: PlainAutoencoder, ours: EEMAutoencoder) -> None:
    """Our weights, in the plain model."""
    plain.embed.weight.copy_(ours.encoder.embed_tokens.weight)
    plain.head.weight.copy_(ours.lm_head.weight)
    plain.window.load_state_dict(ours.expansion.window_proj.state_dict())
    for block, our_block in zip(plain.encoder, ours.encoder.backbone.layers):
        _load_block(block, our_block)
    for block, our_block in zip(plain.decoder, ours.decoder.layers):
        _load_block(block, our_block)


def _load_block(plain: PlainBlock, ours: MaskedMixerBlock) -> None:
    plain.norm1.load_state_dict(ours.mixing_layernorm.state_dict())
    plain.norm2.load_state_dict(ours.mlp_layernorm.state_dict())
    plain.feed_forward[0].load_state_dict(ours.mlp.up_proj.state_dict())
    plain.feed_forward[2].load_state_dict(ours.mlp.down_proj.state_dict())
    if isinstance(plain.mix, PlainHeads):
        _load_heads(plain.mix, ours.mixing)
    else:
        load_conv(plain.mix.conv, ours.mixing.weight, ours.mixing.bias)


def _load_heads(plain: PlainHeads, ours: MaskedMixerMixing) -> None:
    plain.out.load_state_dict(ours.out_proj.state_dict())
    num_heads = len(plain.proj)
    parts = (ours.in_proj.weight.chunk(num_heads), ours.in_proj.bias.chunk(num_heads), ours.weight, ours.bias)
    for proj, mix, proj_weight, proj_bias, weight, bias in zip(plain.proj, plain.mixings, *parts):
        proj.weight.copy_(proj_weight)
        proj.bias.copy_(proj_bias)
        load_conv(mix.conv, weight, bias)


def load_conv(conv: nn.Conv1d, weight: Tensor, bias: Tensor) -> None:
    conv.weight.copy_(weight.view_as(conv.weight))
    conv.bias.copy_(bias)
