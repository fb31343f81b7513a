"""One command, from model folders to regressions: every estimator on the same rows, kept, and no others."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from modeling_eem import EEMConfig, EEMForCausalLM, MaskedMixerConfig, MaskedMixerForCausalLM
from modeling_eem.data import train_tokenizer

TEXT = "The sea was calm, and the old ship lay still. " * 12


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "studies" / "entropy_regressions")
        import entropy_regressions

        yield entropy_regressions


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    (folder / "text.txt").write_text(TEXT)
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "tokenizer")
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    mixer = {"vocab_size": len(tokenizer), "hidden_size": 8, "num_hidden_layers": 1, **special}
    encoder = MaskedMixerConfig(**mixer, max_position_embeddings=16, position_alignment="right")
    decoder = MaskedMixerConfig(**mixer, max_position_embeddings=17)
    eem = EEMConfig(encoder_config=encoder, decoder_config=decoder, bottleneck_size=2, random_prefix_probability=0.1)
    teacher_tokenizer = train_tokenizer([TEXT], 270)
    teacher = LlamaConfig(
        vocab_size=270, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, **special
    )
    for name, model, its_tokenizer in (
        ("eem", EEMForCausalLM(eem), tokenizer),
        ("causal", MaskedMixerForCausalLM(MaskedMixerConfig(**mixer, max_position_embeddings=16)), tokenizer),
        ("teacher", LlamaForCausalLM(teacher), teacher_tokenizer),
    ):
        model.save_pretrained(folder / name)
        its_tokenizer.save_pretrained(folder / name)
    options = {"eem": "eem", "causal": "causal", "teacher": "teacher", "data": "text.txt"}
    return [text for option, name in options.items() for text in (f"--{option}", str(folder / name))]


def test_every_pair_is_regressed_and_nothing_measured_twice(
    benchmark: ModuleType, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*arguments, "--output", str(tmp_path / "values"), "--records", str(tmp_path)]
    result = CliRunner().invoke(benchmark.app, [*arguments, "--windows", "3"])
    assert result.exit_code == 0, result.output
    made = json.loads((tmp_path / "entropy-regressions.json").read_text())
    assert [(line["y"], line["x"]) for line in made["regressions"]] == [(p.y, p.x) for p in benchmark.PAIRS]
    assert {line["tokens"] for line in made["regressions"]} == {15 + 15 + 7}  # the text's last window is short
    assert (tmp_path / "entropy-regressions.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(benchmark, "build_estimator", None)
    assert CliRunner().invoke(benchmark.app, [*arguments, "--windows", "3"]).exit_code == 0
    assert json.loads((tmp_path / "entropy-regressions.json").read_text())["regressions"] == made["regressions"]
    refused = CliRunner().invoke(benchmark.app, [*arguments, "--windows", "2"])
    assert refused.exit_code == 2 and "other models or rows" in refused.output


def test_a_model_that_is_missing_is_said_before_anything_is_written(
    benchmark: ModuleType, arguments: list[str], tmp_path: Path
) -> None:
    wrong = [str(tmp_path / "none") if text.endswith("teacher") and text[0] != "-" else text for text in arguments]
    result = CliRunner().invoke(benchmark.app, [*wrong, "--output", str(tmp_path / "values")])
    assert result.exit_code == 2 and result.output.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_windows_are_taken_from_the_whole_text(benchmark: ModuleType) -> None:
    assert benchmark.evenly(list(range(9)), 3) == [0, 4, 8]
    assert benchmark.evenly([1, 2], 3) == [1, 2]
