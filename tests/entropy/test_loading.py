"""Estimators from the folders of their models, and what is refused there."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer, PreTrainedTokenizerBase

from modeling_eem.entropy import ESTIMATORS, TeacherEntropy
from modeling_eem.entropy.loading import build_estimator, check_options, load_models, own_tokenizer, weights_sha256


@pytest.fixture
def tokenizer(harness_model: Callable[..., Path]) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(harness_model("llama"))


@pytest.mark.parametrize("method", sorted(ESTIMATORS))
def test_every_method_is_loaded(
    method: str, harness_model: Callable[..., Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = harness_model("llama" if method in ("causal", "teacher") else "eem")
    options = {}
    if method == "regression":
        config = AutoModelForCausalLM.from_pretrained(harness_model("llama")).config
        config.num_labels, config.architectures = 1, None
        AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path)
        folder, options = tmp_path, {"alignment": "prefix"}
    names = [str(folder)] * (2 if method == "two_models" else 1)
    models = load_models(method, names, "float32")
    assert not any(model.training for model in models)
    estimator = build_estimator(method, models, tokenizer, batch_tokens=64, **options)
    assert isinstance(estimator, ESTIMATORS[method]) and estimator.batch_tokens == 64
    values = estimator(["the sea was calm"], tokenizer).values[0]
    assert values[0].isnan() and not values[1:].isnan().any()


def test_a_fingerprint_is_of_the_weights_not_of_the_folder(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    (model,) = load_models("causal", [str(harness_model("llama"))])
    model.save_pretrained(tmp_path)
    (copy,) = load_models("causal", [str(tmp_path)])
    assert weights_sha256(model) == weights_sha256(copy)
    with torch.no_grad():
        next(copy.parameters()).view(-1)[0] += 1e-3
    assert weights_sha256(model) != weights_sha256(copy)
    (half,) = load_models("causal", [str(tmp_path)], "bfloat16")
    assert next(half.parameters()).dtype == torch.bfloat16 and weights_sha256(model) != weights_sha256(half)


def test_what_does_not_fit_is_refused(harness_model: Callable[..., Path], tokenizer: PreTrainedTokenizerBase) -> None:
    llama = str(harness_model("llama"))
    with pytest.raises(ValueError, match="stride, metric: not an option of the method exact"):
        check_options("exact", {"stride": 1, "metric": "l1"})
    with pytest.raises(ValueError, match="two_models takes 2 models, not 1"):
        load_models("two_models", [llama])
    with pytest.raises(ValueError, match="exact takes 1 model, not 2"):
        load_models("exact", [llama, llama])
    with pytest.raises(ValueError, match="lacks the weights score.bias, score.weight: it was not trained as a token"):
        load_models("regression", [llama])
    with pytest.raises(ValueError, match="pass --tokenizer"):
        build_estimator("teacher", load_models("teacher", [llama]))
    assert isinstance(build_estimator("teacher", load_models("teacher", [llama]), tokenizer), TeacherEntropy)


def test_a_folder_may_have_no_tokenizer(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    assert own_tokenizer(str(tmp_path)) is None
    assert len(own_tokenizer(str(harness_model("llama")))) == 300
