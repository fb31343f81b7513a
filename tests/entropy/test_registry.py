"""Estimators by name."""

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer, PreTrainedTokenizerBase

from modeling_eem import entropy
from modeling_eem.data.tokenizer import train_tokenizer
from modeling_eem.entropy import (
    ESTIMATORS,
    CausalEntropy,
    EntropyEstimator,
    TeacherEntropy,
    estimate,
    estimator_class,
)
from modeling_eem.entropy.base import Option
from modeling_eem.entropy.corpus_run import weights_sha256
from modeling_eem.entropy.registry import OPTIONS_FILE, build_estimator, check_options, load_models, option_table


def test_every_estimator_has_its_name() -> None:
    public = [getattr(entropy, name) for name in entropy.__all__ if name.endswith("Entropy")]
    assert {estimator.method: estimator for estimator in public} == ESTIMATORS
    assert all(issubclass(estimator, EntropyEstimator) for estimator in ESTIMATORS.values())


def test_estimate_is_the_estimator_called(make_eem: Callable, make_causal: Callable, make_rows: Callable) -> None:
    model = make_eem("llama", "llama")
    input_ids = torch.stack(make_rows(9, 9))
    mask = torch.ones_like(input_ids)
    mask[1, 5:] = 0
    result = estimate("occlusion", model, metric="loss", input_ids=input_ids, attention_mask=mask)
    expected = entropy.OcclusionEntropy(model, "loss")(input_ids=input_ids, attention_mask=mask)
    torch.testing.assert_close(result.values, expected.values, equal_nan=True)
    assert estimate("two_models", model, model, input_ids=input_ids).method == "two_models"
    tokenizer = train_tokenizer(["some text"], 260)
    causal = make_causal("llama", vocab_size=260, bos_token_id=0)
    result = estimate("teacher", causal, tokenizer, tokenizer, texts=["text"], tokenizer=tokenizer)
    expected = estimate("causal", causal, texts=["text"], tokenizer=tokenizer)
    torch.testing.assert_close(result.values, expected.values, equal_nan=True)


@pytest.mark.parametrize(
    "name, hint",
    [("oclusion", "did you mean 'occlusion'"), ("gradient", "did you mean 'gradient_input'"), ("x", r"\.$")],
)
def test_unknown_names_are_told_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"there is no estimator '{name}', only exact, two_models.*{hint}"):
        estimator_class(name)


def test_the_command_lines_table_is_up_to_date() -> None:
    assert json.loads(OPTIONS_FILE.read_text()) == option_table(), "call registry.write_option_table()"


def test_options_are_the_estimators_arguments() -> None:
    """Each declared one is an argument with that default; options of one name say the same in every estimator."""
    said = {}
    for kind in ESTIMATORS.values():
        parameters = inspect.signature(kind).parameters
        for option in kind.options:
            assert parameters[option.name].default == option.default
            assert said.setdefault(option.name, replace(option, default=None)) == replace(option, default=None)


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
    with pytest.raises(ValueError, match="two_models takes 2 models, not 3"):
        load_models("two_models", [llama] * 3)
    with pytest.raises(ValueError, match="exact takes 1 model, not 0"):
        load_models("exact", [])
    with pytest.raises(ValueError, match="lacks the weights score.bias, score.weight: it was not trained as a token"):
        load_models("regression", [llama])
    with pytest.raises(ValueError, match="pass --tokenizer"):
        build_estimator("teacher", load_models("teacher", [llama]))
    assert isinstance(build_estimator("teacher", load_models("teacher", [llama]), tokenizer), TeacherEntropy)


def test_an_option_takes_its_choices_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry checks, so an estimator of one's own need not."""

    class Own(CausalEntropy):
        method = "own"
        options = (Option("kind", "str", "which", choices=("a", "b")),)

    monkeypatch.setitem(ESTIMATORS, "own", Own)
    check_options("own", {"kind": "a"})
    with pytest.raises(ValueError, match="kind must be one of a, b; got 'c'"):
        check_options("own", {"kind": "c"})
