"""What a trainer with a token loss leaves behind, refuses, leaves out and adds; and that any Trainer takes one."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    JetMoeConfig,
    JetMoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    MambaConfig,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from modeling_eem import MaskedMixerConfig, MaskedMixerForCausalLM
from modeling_eem.data import CausalCollator
from modeling_eem.training import (
    TOKEN_LOSSES,
    TokenLossArguments,
    TokenLossMixin,
    TokenWeightedTrainer,
    TokenWeightedTrainingArguments,
)
from modeling_eem.training.trainer import LEFT_OUT, default_collator

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 16}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
LLAMA = {**SIZES, **SPECIAL, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.2}


def mixer() -> MaskedMixerForCausalLM:
    torch.manual_seed(1)
    return MaskedMixerForCausalLM(MaskedMixerConfig(**SIZES, **SPECIAL))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**LLAMA))


def classifier() -> LlamaForTokenClassification:
    torch.manual_seed(1)
    return LlamaForTokenClassification(LlamaConfig(**LLAMA, num_labels=1, classifier_dropout=0.0))


def mixtral(coefficient: float = 0.5) -> MixtralForCausalLM:
    torch.manual_seed(1)
    moe = {"num_local_experts": 4, "num_key_value_heads": 2, "output_router_logits": True}
    return MixtralForCausalLM(MixtralConfig(**LLAMA, **moe, router_aux_loss_coef=coefficient))


Step = Callable[..., tuple[float, dict[str, Tensor]]]


@pytest.fixture
def step(arguments: Callable[..., TokenWeightedTrainingArguments]) -> Step:
    """One step of SGD at rate 1: the loss, and the step itself, which is the gradient."""

    def run(model: PreTrainedModel, dataset: Dataset, **changes: Any) -> tuple[float, dict[str, Tensor]]:
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        trainer = TokenWeightedTrainer(model, arguments(**changes), train_dataset=dataset)
        trainer.train()
        gradient = {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}
        return trainer.state.log_history[0]["loss"], gradient

    return run


# What is left behind


@pytest.mark.parametrize("build", [mixer, llama, classifier])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_trained_model_is_its_own(build: Callable[[], Any], bf16: bool, rows: Dataset, step: Step) -> None:
    """A copy computes with its own weights, and a pickle loads."""
    model = build()
    step(model, rows, bf16=bf16)
    ids = torch.tensor([rows[0]["input_ids"]])
    expected = model.eval()(ids).logits
    clone = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(clone(ids).logits, expected) and expected.any()
    if not bf16:  # there accelerate leaves its autocast on any model
        assert "forward" not in vars(model)
        assert torch.equal(pickle.loads(pickle.dumps(clone))(ids).logits, expected)


def test_a_training_that_fails_leaves_the_model_as_it_was(
    rows: Dataset, arguments: Callable[..., TokenWeightedTrainingArguments], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mixer()
    trainer = TokenWeightedTrainer(model, arguments(token_loss="hinge"), train_dataset=rows)
    monkeypatch.setattr(type(model.model), "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert "forward" not in vars(model)


# Any Trainer


class OtherTrainer(Trainer):
    """Computes a loss of its own, as others do."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        return (7 * loss, outputs) if return_outputs else 7 * loss


@dataclass
class OtherArguments(TrainingArguments):
    extra: int = 0


@dataclass
class MyArguments(TokenLossArguments, OtherArguments):
    pass


class MyTrainer(TokenLossMixin, OtherTrainer):
    pass


def test_any_trainer_takes_a_token_loss(rows: Dataset, arguments: Callable[..., Any], step: Step) -> None:
    expected, gradient = step(mixer(), rows, token_loss="hinge")
    model = mixer()
    before = copy.deepcopy(model.state_dict())
    collator = CausalCollator(pad_token_id=0, vocab_size=40, max_length=16)
    args = arguments(MyArguments, token_loss="hinge", extra=3)
    trainer = MyTrainer(model=model, args=args, train_dataset=rows, data_collator=collator)
    trainer.train()
    assert trainer.args.extra == 3 and trainer.state.log_history[0]["loss"] == expected
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(before[name] - weight, gradient[name])
    with pytest.raises(ValueError, match="OtherArguments has no token loss"):
        MyTrainer(model=mixer(), args=arguments(OtherArguments), train_dataset=rows, data_collator=collator)


def test_rows_of_unequal_length_need_no_collator() -> None:
    """The collator follows from the config, also from one without a padding token or a context length."""
    assert default_collator(llama().config) == CausalCollator(pad_token_id=0, vocab_size=40, max_length=16)
    bare = default_collator(MambaConfig(vocab_size=40, bos_token_id=None, pad_token_id=None))
    assert bare([{"input_ids": [1, 2, 3]}, {"input_ids": [4] * 3000}])["input_ids"].shape == (2, 3000)


# What is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor takes the labels"),
        ({"average_tokens_across_devices": False}, "average_tokens_across_devices: false contradicts"),
        ({"selected_fraction": 0.0}, "selected_fraction must lie above 0"),
        ({"selected_fraction": float("nan")}, "selected_fraction must lie above 0"),
        ({"focal_gamma": float("inf")}, "focal_gamma must be a finite number"),
        ({"mile_gamma": -1.0}, "mile_gamma must be a finite number"),
        ({"entropy_threshold": float("nan")}, "entropy_threshold must be a finite number"),
    ],
)
def test_what_would_change_the_loss_is_refused(
    rows: Dataset, step: Step, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        step(mixer(), rows, token_loss="hinge", **changes)


def test_a_model_that_sees_later_tokens_is_refused(rows: Dataset, step: Step) -> None:
    """Near its initialization its loss is that of a causal one."""
    sizes = {name: value for name, value in LLAMA.items() if name != "initializer_range"}
    with pytest.raises(ValueError, match="BertForMaskedLM sees later tokens"):
        step(BertForMaskedLM(BertConfig(**sizes)), rows)


def test_another_loss_beside_the_token_loss_is_refused(
    rows: Dataset, arguments: Callable[..., TokenWeightedTrainingArguments]
) -> None:
    with pytest.raises(ValueError, match="compute_loss_func replaces token_loss"):
        TokenWeightedTrainer(
            mixer(), arguments(token_loss="hinge"), train_dataset=rows, compute_loss_func=lambda *_, **__: 0
        )
    with pytest.raises(ValueError, match="model_init"):
        TokenLossMixin(args=arguments(), train_dataset=rows, model_init=mixer, data_collator=lambda batch: batch)


# What is left out


@pytest.mark.parametrize("build", [mixer, llama])
@pytest.mark.parametrize("token_loss", TOKEN_LOSSES)
def test_a_step_without_a_labelled_token_has_gradient_zero(
    token_loss: str, build: Callable[[], PreTrainedModel], rows: Dataset, step: Step
) -> None:
    """In one batch, and beside a batch that has some."""
    unlabelled = rows.map(lambda row: {"labels": [-100] * len(row["input_ids"])})
    for accumulation in (1, 2):
        changes = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
        loss, gradient = step(build(), unlabelled, token_loss=token_loss, **changes)
        assert loss == 0 and not any(values.any() for values in gradient.values())
    half = rows.map(
        lambda row, i: {"labels": [-100] * len(row["input_ids"]) if i % 2 else [-100, *row["input_ids"][1:]]},
        with_indices=True,
    )
    changes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    loss, gradient = step(build(), half, token_loss=token_loss, **changes)
    assert loss > 0 and all(values.isfinite().all() for values in gradient.values())


def test_a_regression_without_an_entropy_has_gradient_zero(rows: Dataset, step: Step) -> None:
    empty = rows.map(lambda row: {"token_entropies": [float("nan")] * len(row["input_ids"])})
    loss, gradient = step(classifier(), empty)
    assert loss == 0 and not any(values.any() for values in gradient.values())


@pytest.mark.parametrize("token_loss", ["complement", "distance", "hinge", "threshold", "selective"])
def test_a_labelled_token_without_an_entropy_is_no_label_and_counted(
    token_loss: str, rows: Dataset, step: Step, arguments: Callable[..., TokenWeightedTrainingArguments]
) -> None:
    holes = rows.map(
        lambda row: {
            "token_entropies": [float("nan") if i % 3 == 1 else e for i, e in enumerate(row["token_entropies"])]
        }
    )
    unlabelled = holes.map(
        lambda row: {"labels": [-100 if e != e else t for t, e in zip(row["input_ids"], row["token_entropies"])]}
    )
    loss, gradient = step(mixer(), holes, token_loss=token_loss)
    expected_loss, expected = step(mixer(), unlabelled, token_loss=token_loss)
    assert loss == expected_loss
    for name in expected:
        assert torch.equal(gradient[name], expected[name])
    trainer = TokenWeightedTrainer(mixer(), arguments(token_loss=token_loss), train_dataset=holes)
    trainer.train()
    missing = sum(e != e for row in holes["token_entropies"] for e in row[1:])
    assert trainer.state.log_history[0][LEFT_OUT] == missing
    whole = TokenWeightedTrainer(mixer(), arguments(token_loss=token_loss), train_dataset=rows)
    whole.train()
    assert LEFT_OUT not in whole.state.log_history[0]


def test_whole_numbers_may_be_integers(rows: Dataset, step: Step) -> None:
    whole = [[0, *(int(e) for e in row[1:])] for row in rows["token_entropies"]]
    ids = Dataset.from_dict({"input_ids": rows["input_ids"], "token_entropies": whole})
    floats = Dataset.from_dict(
        {"input_ids": rows["input_ids"], "token_entropies": [[float(e) for e in r] for r in whole]}
    )
    assert step(mixer(), ids, token_loss="hinge")[0] == step(mixer(), floats, token_loss="hinge")[0]


def test_a_regression_without_its_column_is_one_error(
    rows: Dataset, arguments: Callable[..., TokenWeightedTrainingArguments]
) -> None:
    bare = rows.remove_columns("token_entropies")
    trainer = TokenWeightedTrainer(classifier(), arguments(), train_dataset=rows, eval_dataset=bare)
    with pytest.raises(ValueError, match="a regression needs the column token_entropies"):
        trainer.evaluate()
    with pytest.raises(ValueError, match="a regression needs the column token_entropies"):
        TokenWeightedTrainer(classifier(), arguments(), train_dataset=bare.to_iterable_dataset()).train()


def test_a_vocabulary_of_two(arguments: Callable[..., TokenWeightedTrainingArguments], step: Step) -> None:
    model = LlamaForCausalLM(LlamaConfig(**LLAMA | {"vocab_size": 2}))
    assert step(model, Dataset.from_dict({"input_ids": [[1, 0, 1, 1]]}), per_device_train_batch_size=1)[0] > 0


# What is added


def test_a_mixture_of_experts_keeps_its_router_loss(rows: Dataset, step: Step) -> None:
    """The control is the model's own loss; without the router's it is smaller; a step cut up adds it up once."""
    batch = CausalCollator(pad_token_id=0, vocab_size=40, max_length=16)(list(rows))
    batch.pop("token_entropies")
    model = mixtral()
    expected = model.train()(**batch).loss
    expected.backward()
    loss, gradient = step(mixtral(), rows)
    assert loss == pytest.approx(expected.item(), rel=1e-5) and loss > step(mixtral(1e-9), rows)[0] + 0.4
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-3, atol=1e-6)
    cut = step(mixtral(), rows, per_device_train_batch_size=1, gradient_accumulation_steps=8)[0]
    assert cut == pytest.approx(loss, rel=0.1)


def test_a_model_with_a_loss_of_its_own_is_refused(rows: Dataset, step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LlamaForCausalLM.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = whole(self, *args, **kwargs)
        if outputs.loss is not None:
            outputs["loss"] = outputs.loss + 1
        return outputs

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(ValueError, match="LlamaForCausalLM: its loss is .* a token loss would drop the rest"):
        step(llama(), rows)


@pytest.mark.parametrize("coefficient", [0.01, 0.5])
def test_a_router_loss_of_another_name_is_kept(coefficient: float, rows: Dataset, step: Step) -> None:
    def jetmoe() -> PreTrainedModel:
        torch.manual_seed(1)
        sizes = {"kv_channels": 8, "num_local_experts": 4, "num_key_value_heads": 2, "output_router_logits": True}
        return JetMoeForCausalLM(JetMoeConfig(**LLAMA, **sizes, aux_loss_coef=coefficient))

    batch = CausalCollator(pad_token_id=0, vocab_size=40, max_length=16)(list(rows))
    batch.pop("token_entropies")
    expected = jetmoe().train()(**batch).loss.item()
    assert step(jetmoe(), rows)[0] == pytest.approx(expected, rel=1e-5)


def test_a_small_loss_of_its_own_is_refused(rows: Dataset, step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LlamaForCausalLM.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = whole(self, *args, **kwargs)
        if outputs.loss is not None:
            outputs["loss"] = outputs.loss + 0.01
        return outputs

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(ValueError, match="a token loss would drop the rest"):
        step(llama(), rows)
