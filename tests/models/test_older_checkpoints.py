"""What was saved by the first published code (00b8055) stays what it was, in its own code and in ours.

The two folders in `checkpoints/` came from that commit, with the code that it put beside the weights; that code is
also the one that ours is trained against here, step by step.
"""

import sys
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from modeling_eem import EEMForCausalLM, MaskedMixerForCausalLM, kernels
from modeling_eem.models import loss_eem

FOLDERS = {"masked_mixer": "mixer-heads-kernel-00b8055.zip", "eem": "eem-mixer-00b8055.zip"}
WAYS = {"kernels": nullcontext, "plain": kernels.plain}
_MIXER = {"vocab_size": 40, "hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 150}
_LLAMA = {**_MIXER, "model_type": "llama", "intermediate_size": 128, "num_attention_heads": 2}
_NOISE = {"bottleneck_size": 8, "noise_scale": 0.1}
TRAINED: dict[str, dict[str, Any]] = {
    "flat": _MIXER,
    "heads and kernel": {**_MIXER, "num_mixing_heads": 4, "mixing_kernel_size": 4},
    "heads and two taps": {**_MIXER, "num_mixing_heads": 4, "mixing_kernel_size": 2},
    "eem": {"encoder_config": _MIXER, "decoder_config": {**_MIXER, "max_position_embeddings": 151}, **_NOISE},
    "eem llama": {"encoder_config": _LLAMA, "decoder_config": {**_LLAMA, "max_position_embeddings": 151}, **_NOISE},
}

# The losses of 00b8055, as they were on a Zen 4 processor.
RECORDED: dict[str, list[float]] = {
    "flat": [
        3.8917227,
        3.9019656,
        3.9280090,
        3.8462429,
        3.8520083,
        3.8866811,
        3.8624163,
        3.8234138,
        3.8093734,
        3.8428545,
    ],
    "heads and kernel": [
        3.8644867,
        3.8816237,
        3.9040365,
        3.8428500,
        3.8052475,
        3.8338749,
        3.8049562,
        3.8274748,
        3.8144698,
        3.7848463,
    ],
    "eem": [
        3.9957788,
        3.9693813,
        3.9313738,
        3.8595431,
        3.8699486,
        3.8883009,
        3.8208079,
        3.8354974,
        3.8004177,
        3.8116107,
    ],
    "eem llama": [
        3.8543537,
        3.8338737,
        3.8218064,
        3.8161995,
        3.8165274,
        3.8166244,
        3.8298016,
        3.8384473,
        3.7928479,
        3.8276265,
    ],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    unpacked = {}
    for family, name in FOLDERS.items():
        unpacked[family] = tmp_path_factory.mktemp("older") / f"{family}_00b8055"
        with zipfile.ZipFile(Path(__file__).parent / "checkpoints" / name) as archive:
            archive.extractall(unpacked[family])
    return unpacked


def _older_class(folders: dict[str, Path], family: str) -> type[PreTrainedModel]:
    name = {"masked_mixer": "modeling_masked_mixer.MaskedMixerForCausalLM", "eem": "modeling_eem.EEMForCausalLM"}
    cls = get_class_from_dynamic_module(name[family], str(folders[family]))
    assert hasattr(sys.modules[cls.__module__], "FastLinear"), "this is not the older code"
    return cls


OURS: dict[str, type[PreTrainedModel]] = {"masked_mixer": MaskedMixerForCausalLM, "eem": EEMForCausalLM}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FOLDERS)
def test_an_older_folder_gives_the_same_logits(
    family: str, way: str, folders: dict[str, Path], pad_rows: Callable, assert_same_logits: Callable
) -> None:
    older = _older_class(folders, family).from_pretrained(folders[family]).eval()
    ours, report = OURS[family].from_pretrained(folders[family], output_loading_info=True)
    assert not any(report.values())
    input_ids, mask = pad_rows([torch.randint(2, 31, (n,)) for n in (14, 9, 3)], "left", 14)
    input_ids = input_ids % 31
    calls: list[dict[str, Tensor]] = [{}, {"attention_mask": mask}]
    if family == "masked_mixer":
        calls.append({"position_ids": torch.tensor([[*range(5), *range(9)]])})
    with torch.no_grad(), WAYS[way]():
        for call in calls:
            expected = older(input_ids, labels=input_ids, **call)
            actual = ours.eval()(input_ids, labels=input_ids, **call)
            assert_same_logits(actual.logits, expected.logits)
            torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-6, atol=1e-6)
        options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": mask[:2, :8]}
        prompt = input_ids[:2, :8]
        assert torch.equal(ours.generate(prompt, **options), older.generate(prompt, **options))


class _Lookup(nn.Embedding):
    """What the older mixers, which asked for `ids.T`, are given in the order that ours ask in (`[B, T, D]` for hooks).

    The gradient of a token's embedding is then summed in the same order.
    """

    def forward(self, ids_TB: Tensor) -> Tensor:
        return super().forward(ids_TB.T).transpose(0, 1)


def _losses(cls: type[PreTrainedModel], fields: dict[str, Any], in_our_order: bool = False) -> list[float]:
    """Ten steps on fixed rows, a third of them padded."""
    torch.manual_seed(0)
    model = cls(cls.config_class(**fields)).train()
    if in_our_order:
        model.get_input_embeddings().__class__ = _Lookup
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(10):
        input_ids = torch.randint(2, 40, (3, 150))
        mask = torch.ones_like(input_ids)
        mask[0, :40] = 0
        loss = model(input_ids, attention_mask=mask, labels=input_ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", TRAINED)
def test_training_takes_the_same_steps(name: str, folders: dict[str, Path]) -> None:
    """Bit for bit with the kernels, but for the zeros that fill up a chunk of the head: oneDNN adds otherwise. With
    those zeros, in plain PyTorch, and as the older code stands: within 1e-6."""
    family = "eem" if "eem" in name else "masked_mixer"
    older, ours = _older_class(folders, family), OURS[family]
    actual = _losses(ours, TRAINED[name])
    if TRAINED[name].get("mixing_kernel_size") != 4:  # four taps were halved twice
        with patch.object(loss_eem, "ROW_MULTIPLE", 1):
            unfilled = _losses(ours, TRAINED[name])
        assert unfilled == _losses(older, TRAINED[name], in_our_order=family == "masked_mixer")
    expected = _losses(older, TRAINED[name])
    assert actual == pytest.approx(expected, rel=1e-6)
    with kernels.plain():
        assert _losses(ours, TRAINED[name]) == pytest.approx(expected, rel=1e-6)
    if name in RECORDED:
        assert actual == pytest.approx(RECORDED[name], rel=1e-6)
