"""Second-order entropies: read at the output where the model was trained to give them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification

from modeling_eem.entropy import RegressionEntropy
from modeling_eem.training import TokenWeightedTrainer, TokenWeightedTrainingArguments


@torch.no_grad()
@pytest.mark.parametrize("alignment", ["prefix", "token"])
@pytest.mark.parametrize("model_type", ["masked_mixer", "llama", "gpt2"])
def test_values_stand_at_the_token_they_describe(
    model_type: str, alignment: str, make_regression: Callable, make_rows: Callable
) -> None:
    model = make_regression(model_type)
    (row,) = make_rows(12)
    scores = model(input_ids=row[None]).logits[0, :, 0].double()
    values = RegressionEntropy(model, alignment)(input_ids=row[None]).values[0]
    assert values[0].isnan()
    torch.testing.assert_close(values[1:], scores[:-1] if alignment == "prefix" else scores[1:])


@pytest.mark.parametrize("alignment", ["prefix", "token"])
@pytest.mark.parametrize("model_type", ["masked_mixer", "llama"])
def test_the_alignment_comes_from_training(
    model_type: str, alignment: str, make_regression: Callable, make_rows: Callable, tmp_path: Path
) -> None:
    """The values are those that training fits: the loss it reports is theirs, before a step and after saving."""
    model = make_regression(model_type, **({"classifier_dropout": 0.0} if model_type == "llama" else {}))
    rows = torch.stack(make_rows(16, 16))
    targets: Tensor = torch.randn(2, 16)
    arguments = TokenWeightedTrainingArguments(
        str(tmp_path), regression_alignment=alignment, report_to="none", use_cpu=True
    )
    trainer = TokenWeightedTrainer(model, arguments)
    loss = trainer.compute_loss(model.train(), {"input_ids": rows, "labels": rows, "token_entropies": targets})
    values = RegressionEntropy(model)(input_ids=rows).values
    torch.testing.assert_close((values - targets)[:, 1:].square().mean(), loss.double(), rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path, dtype="float32")
    torch.testing.assert_close(RegressionEntropy(loaded)(input_ids=rows).values, values, equal_nan=True)
    other = {"prefix": "token", "token": "prefix"}[alignment]
    with pytest.raises(ValueError, match=f"trained with alignment='{alignment}', not '{other}'"):
        RegressionEntropy(loaded, other)


def test_models_that_are_no_regressions(make_regression: Callable, make_causal: Callable) -> None:
    with pytest.raises(ValueError, match="not LlamaForTokenClassification with num_labels=3"):
        RegressionEntropy(make_regression("llama", num_labels=3), "prefix")
    with pytest.raises(ValueError, match="num_labels=1, not LlamaForCausalLM"):
        RegressionEntropy(make_causal("llama"), "prefix")
    with pytest.raises(ValueError, match="alignment must be one of prefix, token, not 'left'"):
        RegressionEntropy(make_regression("llama"), "left")
    with pytest.raises(ValueError, match="no regression_alignment: pass alignment='prefix' or 'token'"):
        RegressionEntropy(make_regression("llama"))
