"""`S(w)`: the nats that an entropy estimation model needs for a window's text, given the window's code.

Exact entropies are differences of such sums over the prefixes of a text, and almost all their time is spent here. Each
prefix is computed once and only as wide as it is; prefixes of about equal length, from all rows, share a forward pass.
A prefix-consistent encoder, whose output at a token depends on nothing after it, yields the codes of all prefixes of a
row in one pass. Shapes: R windows, T tokens, P numbers of a code, G prefixes of a pass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modeling_eem.entropy.base import length_batches, pad_right
from modeling_eem.entropy.nats import token_nats
from modeling_eem.kernels.cpu_linear import FEW_ROWS
from modeling_eem.models.modeling_eem import EEMForCausalLM


def prefix_nats(
    model: EEMForCausalLM,
    windows: Sequence[Tensor],
    prefixes: Sequence[tuple[int, int]],
    batch_tokens: int,
    encodes_prefixes: bool,
) -> Tensor:
    """`S(w_1 … w_length)` for each `(window, length)` of `prefixes`, float64 on the CPU; 0 for a length of 1.

    Args:
        windows: ids `[t]`, BOS first, none longer than the context; on the model's device.
        encodes_prefixes: the result of `is_prefix_consistent` for the model.
    """
    flat_N = torch.cat(list(windows))
    starts_R = torch.tensor([0, *map(len, windows)]).cumsum(0).to(flat_N.device)
    codes = _codes_of_prefixes(model, windows, prefixes, batch_tokens) if encodes_prefixes else None
    nats = torch.zeros(len(prefixes), dtype=torch.float64)
    scored = [place for place, (_, length) in enumerate(prefixes) if length > 1]
    for batch in length_batches([prefixes[place][1] for place in scored], batch_tokens):
        places = [scored[index] for index in batch]
        # The last bits of a product of few rows depend on the weights' address, which differs between processes: few
        # prefixes are filled up with copies of the last, as far as `batch_tokens` allows.
        least = min(FEW_ROWS + 1, batch_tokens // prefixes[places[-1]][1])
        filled = places + places[-1:] * (least - len(places))
        rows_G, lengths_G = torch.tensor([prefixes[place] for place in filled], device=flat_N.device).T
        places_T = torch.arange(int(lengths_G.max()), device=flat_N.device)
        # Neither the encoder nor the decoder sees the tokens to the right of a prefix.
        prefix_GT = flat_N[(starts_R[rows_G, None] + places_T).clamp(max=len(flat_N) - 1)]
        codes_GP = _encode(model, prefix_GT, lengths_G) if codes is None else codes[filled]
        nats[places] = _summed_nats(model, prefix_GT, lengths_G, codes_GP)[: len(places)].cpu()
    return nats


def _summed_nats(model: EEMForCausalLM, prefix_GT: Tensor, lengths_G: Tensor, codes_GP: Tensor) -> Tensor:
    """A causal decoder does not see what is to the right of a prefix; the last token is predicted, not read."""
    inputs_GT, targets_GT = prefix_GT[:, :-1], prefix_GT[:, 1:]
    hidden_GTD = model.model(input_ids=inputs_GT, code=codes_GP, use_cache=False).last_hidden_state
    places_T = torch.arange(inputs_GT.shape[1], device=inputs_GT.device)
    is_scored_GT = places_T < lengths_G[:, None] - 1
    nats_GT = torch.zeros(targets_GT.shape, dtype=torch.float64, device=targets_GT.device)
    nats_GT[is_scored_GT] = token_nats(hidden_GTD[is_scored_GT], model.lm_head, targets_GT[is_scored_GT])
    return nats_GT.sum(-1)


def _codes_of_prefixes(
    model: EEMForCausalLM, windows: Sequence[Tensor], prefixes: Sequence[tuple[int, int]], batch_tokens: int
) -> Tensor:
    """The codes of `prefixes`, `[len(prefixes), P]`; one pass over a window yields the codes of all its prefixes."""
    encoder = model.model.encoder
    of_window: list[list[int]] = [[] for _ in windows]
    for place, (window, _) in enumerate(prefixes):
        of_window[window].append(place)
    lengths = torch.tensor([length for _, length in prefixes])
    places, codes = [], []
    for batch in length_batches([len(window) for window in windows], batch_tokens):
        hidden_BTD = encoder.hidden_states(pad_right([windows[index] for index in batch])[0])
        places.append(torch.tensor([place for index in batch for place in of_window[index]]))
        rows = torch.tensor([row for row, index in enumerate(batch) for _ in of_window[index]])
        codes.append(encoder.bottleneck.compress(hidden_BTD[rows, lengths[places[-1]] - 1], model.config))
    return torch.cat(codes)[torch.cat(places).argsort()]


def _encode(model: EEMForCausalLM, prefix_GT: Tensor, lengths_G: Tensor) -> Tensor:
    mask_GT = None
    if bool((lengths_G < prefix_GT.shape[1]).any()):
        mask_GT = (torch.arange(prefix_GT.shape[1], device=prefix_GT.device) < lengths_G[:, None]).long()
    return model.model.encoder(prefix_GT, mask_GT, model.config)


def is_prefix_consistent(model: EEMForCausalLM) -> bool:
    """Whether the encoder's output at a token depends only on that token, those before it and their places.

    Tested on values, because no config says it for every backbone: the outputs for a row of random ids are compared
    with those for its prefixes. Causal transformers and left-aligned causal mixers are prefix-consistent;
    right-aligned mixers and encoders that are not causal are not.
    """
    config, encoder = model.config, model.model.encoder
    length = config.max_position_embeddings
    generator = torch.Generator().manual_seed(0)
    row_T = torch.randint(config.vocab_size, (1, length), generator=generator).to(model.device)
    whole_TD = encoder.hidden_states(row_T)[0]
    for prefix in {1, 2, length // 2, length - 1} - {0, length}:
        output_D = encoder.hidden_states(row_T[:, :prefix])[0, -1]
        scale = whole_TD[prefix - 1].abs().max().clamp(min=1.0)
        if not (output_D - whole_TD[prefix - 1]).abs().max() <= _tolerance(output_D.dtype) * scale:
            return False
    return True


def _tolerance(dtype: torch.dtype) -> float:
    """Larger than the effect of rounding on an output, far smaller than that of another place or one more token."""
    return max(1e-4, 16 * torch.finfo(dtype).eps)
