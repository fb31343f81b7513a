"""The same optimizer step, cut up in every way, has the same loss and the same gradients, for every token loss."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    PreTrainedModel,
)

from modeling_eem import EEMForCausalLM, MaskedMixerConfig, MaskedMixerForCausalLM, MaskedMixerForTokenClassification
from modeling_eem.data import CausalCollator
from modeling_eem.training.token_loss_arguments import TokenWeightedTrainingArguments
from modeling_eem.training.token_losses import TOKEN_LOSSES
from modeling_eem.training.trainer import TokenWeightedTrainer

VOCAB, CONTEXT, ROWS = 40, 16, 8
LLAMA = {"num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.2}
SIZES = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": CONTEXT}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}


def mixer() -> MaskedMixerForCausalLM:
    torch.manual_seed(1)
    return MaskedMixerForCausalLM(MaskedMixerConfig(**SIZES, **SPECIAL))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **SPECIAL, **LLAMA, use_cache=False))


@pytest.fixture
def rows() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, CONTEXT // 2 + 1, (ROWS,), generator=generator).tolist()
    return Dataset.from_list(
        [
            {
                "input_ids": [1, *torch.randint(2, VOCAB, (length - 1,), generator=generator).tolist()],
                "token_entropies": [float("nan"), *(4 * torch.rand(length - 1, generator=generator)).tolist()],
            }
            for length in lengths
        ]
    )


@pytest.fixture
def step(tmp_path: Path) -> Callable[..., tuple[float, dict[str, Tensor]]]:
    """One optimizer step of SGD at rate 1: the loss that was logged, and the step itself, which is the gradient."""

    def run(model: PreTrainedModel, dataset: Dataset, side: str = "right", **arguments: Any) -> tuple[float, dict]:
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        collator = CausalCollator(pad_token_id=0, vocab_size=VOCAB, max_length=CONTEXT, padding_side=side)
        given = {"per_device_train_batch_size": len(dataset), "gradient_accumulation_steps": 1} | arguments
        trainer = TokenWeightedTrainer(
            model=model,
            args=TokenWeightedTrainingArguments(
                output_dir=str(tmp_path),
                max_steps=1,
                learning_rate=1.0,
                lr_scheduler_type="constant",
                optim="sgd",
                max_grad_norm=0.0,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                dataloader_pin_memory=False,
                seed=0,
                **given,
            ),
            train_dataset=dataset,
            data_collator=collator,
        )
        trainer.train()
        gradient = {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}
        return trainer.state.log_history[0]["loss"], gradient

    return run


def assert_same(a: tuple[float, dict[str, Tensor]], b: tuple[float, dict[str, Tensor]]) -> None:
    assert a[0] == pytest.approx(b[0], rel=1e-4)
    assert max(gradient.abs().max() for gradient in a[1].values()) > 1e-3
    for name in a[1]:
        torch.testing.assert_close(a[1][name], b[1][name], rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("build", [mixer, llama])
@pytest.mark.parametrize("token_loss", TOKEN_LOSSES)
def test_a_step_does_not_depend_on_how_it_is_cut(
    token_loss: str, build: Callable[[], PreTrainedModel], rows: Dataset, step: Callable
) -> None:
    whole = step(build(), rows, token_loss=token_loss)
    accumulated = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": ROWS}
    assert_same(whole, step(build(), rows, token_loss=token_loss, **accumulated))
    assert_same(whole, step(build(), rows, token_loss=token_loss, activation_checkpointing=True))
    assert_same(whole, step(build(), rows, side="left", token_loss=token_loss))


@pytest.mark.parametrize("build", [mixer, llama])
@pytest.mark.parametrize("token_loss", TOKEN_LOSSES)
def test_packed_rows_are_separate_rows(
    token_loss: str, build: Callable[[], PreTrainedModel], rows: Dataset, step: Callable
) -> None:
    packed = []
    for first, second in zip(rows.select(range(0, ROWS, 2)), rows.select(range(1, ROWS, 2))):
        a, b = first["input_ids"], second["input_ids"]
        packed.append(
            {
                "input_ids": a + b,
                "labels": [-100, *a[1:], -100, *b[1:]],
                "position_ids": [*range(len(a)), *range(len(b))],
                "token_entropies": first["token_entropies"] + second["token_entropies"],
            }
        )
    assert_same(
        step(build(), rows, token_loss=token_loss), step(build(), Dataset.from_list(packed), token_loss=token_loss)
    )


def test_cross_entropy_is_the_models_own_loss(rows: Dataset, step: Callable) -> None:
    model, own = mixer(), mixer()
    loss, gradient = step(model, rows)
    batch = CausalCollator(pad_token_id=0, vocab_size=VOCAB, max_length=CONTEXT)(list(rows))
    batch.pop("token_entropies")
    expected = own(**batch).loss
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    for name, parameter in own.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_code_dropout_reaches_a_training_that_runs_the_head_itself(
    rows: Dataset, step: Callable, eem_config: Callable[..., Any]
) -> None:
    """With every row occluded the encoder learns nothing."""
    model = EEMForCausalLM(eem_config(max_position_embeddings=CONTEXT, code_dropout=1.0))
    _, gradient = step(model, rows)
    of_encoder = {name for name in gradient if ".encoder." in name}
    assert of_encoder and not any(gradient[name].any() for name in of_encoder)
    assert any(gradient[name].any() for name in set(gradient) - of_encoder)


@pytest.mark.parametrize("classes", ["mixer", "llama"])
@pytest.mark.parametrize("alignment", ["prefix", "token"])
def test_regression_is_masked_mean_squared_error(classes: str, alignment: str, rows: Dataset, step: Callable) -> None:
    def build() -> PreTrainedModel:
        torch.manual_seed(1)
        if classes == "mixer":
            return MaskedMixerForTokenClassification(MaskedMixerConfig(**SIZES, **SPECIAL, num_labels=1)).eval()
        config = LlamaConfig(**SIZES, **SPECIAL, **LLAMA, num_labels=1, classifier_dropout=0.0)
        return LlamaForTokenClassification(config)

    loss, gradient = step(build(), rows, regression_alignment=alignment)
    accumulated = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": ROWS}
    assert_same((loss, gradient), step(build(), rows, regression_alignment=alignment, **accumulated))
    model, errors = build(), []
    for row in rows:
        scores = model(torch.tensor([row["input_ids"]])).logits[0, :, 0]
        scores = scores[:-1] if alignment == "prefix" else scores[1:]
        errors.append((scores - torch.tensor(row["token_entropies"][1:])).square())
    assert loss == pytest.approx(torch.cat(errors).mean().item(), rel=1e-4)


def test_a_missing_column_is_an_error(rows: Dataset, step: Callable) -> None:
    with pytest.raises(ValueError, match="token_entropies"):
        step(mixer(), rows.remove_columns("token_entropies"), token_loss="hinge")


def _stage_losses(
    dataset: Dataset, folder: Path, steps: int = 6, resume: bool = False, **arguments: Any
) -> list[float]:
    """The losses of a model that does not learn, one a step, all rows in each."""
    trainer = TokenWeightedTrainer(
        model=llama(),
        args=TokenWeightedTrainingArguments(
            output_dir=str(folder), max_steps=steps, learning_rate=0.0, logging_steps=1,
            report_to="none", disable_tqdm=True, use_cpu=True,
            **{"token_loss": "hinge", "per_device_train_batch_size": ROWS, "save_strategy": "no", **arguments},
        ),
        train_dataset=dataset,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]


def test_each_stage_of_training_reads_its_own_entropies(rows: Dataset, tmp_path: Path) -> None:
    values = [-1.0, 0.5, 1.5]  # entropies of every token, lower than its loss
    stages = ["token_entropies_1", "token_entropies_2", "token_entropies"]
    staged = rows.remove_columns("token_entropies")
    for name, value in zip(stages, values):
        staged = staged.add_column(name, [[value] * len(ids) for ids in rows["input_ids"]])
    (plain,) = _stage_losses(staged, tmp_path, 1, entropy_columns=["token_entropies_1"])
    (again,) = _stage_losses(staged, tmp_path, 1)  # the last teacher alone
    assert again < plain

    even = _stage_losses(staged, tmp_path, entropy_columns=stages)
    assert even[0] == pytest.approx(plain) and even[4] == pytest.approx(again)
    assert [even.count(loss) for loss in dict.fromkeys(even)] == [2, 2, 2]
    chosen = _stage_losses(staged, tmp_path, entropy_columns=stages, entropy_stage_steps=[1, 5])
    assert [chosen.count(loss) for loss in dict.fromkeys(chosen)] == [1, 4, 1]
    assert list(dict.fromkeys(chosen)) == list(dict.fromkeys(even))
    accumulated = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": ROWS // 2}
    assert _stage_losses(staged, tmp_path, entropy_columns=stages, **accumulated) == pytest.approx(even, abs=2e-4)


def test_a_lengthened_run_does_not_go_back_to_an_earlier_stage(rows: Dataset, tmp_path: Path) -> None:
    staged = rows.add_column("early", [[-1.0] * len(ids) for ids in rows["input_ids"]])
    given = {"entropy_columns": ["early", "token_entropies"], "save_strategy": "steps", "save_steps": 2}
    _stage_losses(staged, tmp_path, 2, **given)
    with pytest.raises(ValueError, match="at step 2 of 2 the run had come to token_entropies, and a run of 6 steps"):
        _stage_losses(staged, tmp_path, resume=True, **given)
    assert len(set(_stage_losses(staged, tmp_path, resume=True, **given, entropy_stage_steps=[1]))) == 2
    given["token_loss"] = "focal"  # reads no entropy
    _stage_losses(staged, tmp_path / "focal", 2, **given)
    assert _stage_losses(staged, tmp_path / "focal", resume=True, **given)


def test_a_stream_leaves_no_gradient_to_its_next_epoch(rows: Dataset, tmp_path: Path) -> None:
    """transformers makes no step of the batches that accumulation leaves over, and keeps their gradient."""
    given = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 0.0}
    given |= {"max_steps": 6, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True}
    args = TokenWeightedTrainingArguments(str(tmp_path), **given)
    stream = rows.select(range(3)).to_iterable_dataset()
    trainer = TokenWeightedTrainer(model=llama(), args=args, train_dataset=stream)
    trainer.train()
    steps = [(entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry]
    assert steps == [pytest.approx(steps[0])] * 6, "rows 1 and 2, of every epoch"


def test_evaluation_is_the_last_stages(rows: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = LlamaForTokenClassification(LlamaConfig(**SIZES, **SPECIAL, **LLAMA, num_labels=1))
    early = [[9.0] * len(ids) for ids in rows["input_ids"]]
    given = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True}

    def loss(dataset: Dataset, **arguments: Any) -> float:
        args = TokenWeightedTrainingArguments(**given, **arguments)
        return TokenWeightedTrainer(model, args, train_dataset=dataset, eval_dataset=dataset).evaluate()["eval_loss"]

    stages = {"entropy_columns": ["token_entropies_1", "token_entropies"]}
    assert loss(rows.add_column("token_entropies_1", early), **stages) == pytest.approx(loss(rows))


@pytest.mark.parametrize("is_measured", [False, True])
def test_no_float_reaches_a_wrapper_that_might_round_it(rows: Dataset, tmp_path: Path, is_measured: bool) -> None:
    """FSDP2 in bfloat16 rounds floating point arguments of `forward`; entropies travel as integers."""
    torch.manual_seed(1)
    model = LlamaForTokenClassification(LlamaConfig(**SIZES, **SPECIAL, **LLAMA, num_labels=1))
    args = TokenWeightedTrainingArguments(
        str(tmp_path), max_steps=1, save_strategy="no", report_to="none", use_cpu=True, label_names=["token_entropies"]
    )
    trainer = TokenWeightedTrainer(model, args, train_dataset=rows, eval_dataset=rows)
    seen: list[dict[str, Any]] = []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
    predicted = trainer.predict(rows).label_ids if is_measured else trainer.train()
    assert seen and all("token_entropies_as_integers" in given for given in seen)
    for given in seen:
        tensors = [value for value in given.values() if isinstance(value, Tensor)]
        assert tensors and not any(value.is_floating_point() and value.ndim for value in tensors)
    if is_measured:  # what metrics read is as it was
        assert predicted.shape[0] == len(rows) and abs(predicted[0, 1] - rows[0]["token_entropies"][1]) < 1e-6


def test_deepspeed_in_bfloat16_rounds_no_entropy(
    rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers turns all floating point columns of a batch into DeepSpeed's dtype."""
    args = TokenWeightedTrainingArguments(str(tmp_path), token_loss="hinge", report_to="none", use_cpu=True)
    trainer = TokenWeightedTrainer(mixer(), args, train_dataset=rows)
    batch = next(iter(trainer.get_train_dataloader()))
    state = trainer.accelerator.state
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    monkeypatch.setattr(type(state), "deepspeed_plugin", plugin)
    prepared = trainer._prepare_inputs({**batch, "other": torch.ones(1)})
    assert prepared["other"].dtype == torch.bfloat16
    torch.testing.assert_close(prepared["token_entropies"], batch["token_entropies"], rtol=0, atol=0, equal_nan=True)


def test_a_stage_beyond_the_last_epoch_is_an_error(rows: Dataset, tmp_path: Path) -> None:
    """Only the training counts the steps of its epochs: here two."""
    staged = rows.add_column("late", rows["token_entropies"])
    given = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True}
    given |= {"token_loss": "hinge", "entropy_columns": ["token_entropies", "late"], "save_strategy": "no"}
    for start in (1, 2):
        args = TokenWeightedTrainingArguments(str(tmp_path), entropy_stage_steps=[start], **given)
        trainer = TokenWeightedTrainer(mixer(), args, train_dataset=staged)
        if start == 1:
            trainer.train()
            continue
        with pytest.raises(ValueError, match="a stage that begins at step 2 never comes in 2 steps"):
            trainer.train()


def test_a_trained_regression_keeps_its_alignment(rows: Dataset, step: Callable) -> None:
    model = MaskedMixerForTokenClassification(MaskedMixerConfig(**SIZES, **SPECIAL, num_labels=1))
    step(model, rows, regression_alignment="token")
    step(model, rows)
    assert model.config.regression_alignment == "token"
    with pytest.raises(ValueError, match="is 'prefix', and the model was trained with 'token': leave it out"):
        step(model, rows, regression_alignment="prefix")
    new = MaskedMixerForTokenClassification(MaskedMixerConfig(**SIZES, **SPECIAL, num_labels=1))
    step(new, rows)
    assert new.config.regression_alignment == "prefix"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regression_alignment": "suffix"}, "regression_alignment must be one of prefix, token; got 'suffix'"),
        ({"entropy_columns": []}, "at least one"),
        ({"entropy_columns": ["a", "a"]}, "different names"),
        ({"entropy_columns": ["a", "b"], "entropy_stage_steps": [3, 4]}, "must be 1 growing numbers"),
        ({"entropy_columns": ["a", "b", "c"], "entropy_stage_steps": [4, 4]}, "must be 2 growing numbers"),
        ({"entropy_columns": ["a", "b"], "entropy_stage_steps": [0]}, "growing numbers of steps"),
        ({"entropy_stage_steps": [5]}, "must be 0 growing numbers"),
        (
            {"entropy_columns": ["a", "b"], "entropy_stage_steps": [6], "max_steps": 6},
            "a stage that begins at step 6 never comes in 6 steps",
        ),
    ],
)
def test_stages_that_do_not_match_their_columns_are_errors(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        TokenWeightedTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **arguments)


def test_an_unknown_loss_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="token_loss must be one of"):
        TokenWeightedTrainingArguments(output_dir=str(tmp_path), token_loss="focus")


def test_evaluation_is_the_models_own_forward(rows: Dataset, step: Callable) -> None:
    """Also a sum where one item is said to be in the batch: held-out code lengths are measured on trained models."""
    model = mixer()
    step(model, rows, token_loss="hinge")
    batch = CausalCollator(pad_token_id=0, vocab_size=VOCAB, max_length=CONTEXT)(list(rows))
    own = mixer().eval()
    own.load_state_dict(model.state_dict())
    plain = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    expected = own(**plain)
    outputs = model.eval()(**plain)
    assert torch.equal(outputs.loss, expected.loss)
    assert torch.equal(outputs.logits, expected.logits)
    summed = model(**plain, num_items_in_batch=1).loss
    torch.testing.assert_close(summed, own(**plain, num_items_in_batch=1).loss)
    assert summed > 10 * expected.loss


def with_entropies(rows: Dataset, entropy: Callable[[int, int], float]) -> Dataset:
    """`rows` whose entropies are `entropy(place, id)`."""
    return rows.map(
        lambda row: {"token_entropies": [entropy(place, token) for place, token in enumerate(row["input_ids"])]}
    )


@pytest.mark.parametrize("build", [mixer, llama])
@pytest.mark.parametrize("token_loss", ["complement", "distance", "hinge", "threshold", "selective"])
def test_weights_of_one_are_cross_entropy_bit_for_bit(
    token_loss: str, build: Callable[[], PreTrainedModel], rows: Dataset, step: Callable
) -> None:
    """ê of a constant row is 0; and no cross-entropy lies below e = 0."""
    constant = with_entropies(rows, lambda place, token: 0.0)
    loss, gradient = step(build(), constant, token_loss=token_loss, selected_fraction=1.0)
    expected_loss, expected_gradient = step(build(), constant)
    assert loss == expected_loss
    for name, expected in expected_gradient.items():
        assert torch.equal(gradient[name], expected), name


@pytest.mark.parametrize("build", [mixer, llama])
def test_a_weight_of_zero_is_no_label_but_stays_in_the_denominator(
    build: Callable[[], PreTrainedModel], rows: Dataset, step: Callable
) -> None:
    odd_dropped = with_entropies(rows, lambda place, token: 9.0 if place % 2 else 0.0)
    loss, gradient = step(build(), odd_dropped, token_loss="threshold", entropy_threshold=5.0)
    unlabelled = rows.map(
        lambda row: {"labels": [-100 if place % 2 or place == 0 else t for place, t in enumerate(row["input_ids"])]}
    )
    expected_loss, expected_gradient = step(build(), unlabelled)
    share = sum(label != -100 for row in unlabelled["labels"] for label in row) / sum(
        len(ids) - 1 for ids in rows["input_ids"]
    )
    assert 0.2 < share < 0.8
    assert loss == pytest.approx(expected_loss * share, rel=1e-4)
    for name, expected in expected_gradient.items():
        torch.testing.assert_close(gradient[name], expected * share, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("token_loss", ["cross_entropy", "hinge", "mile"])
def test_the_loss_is_float32_under_bf16_autocast(token_loss: str, rows: Dataset, step: Callable) -> None:
    """Sums of bf16 losses would be multiples of 2^-5 at this size; the products' own rounding stays."""
    expected, _ = step(llama(), rows, token_loss=token_loss)
    loss, gradient = step(llama(), rows, token_loss=token_loss, bf16=True)
    assert loss == pytest.approx(expected, rel=2e-2)
    assert loss != torch.tensor(loss).bfloat16().item()
    assert all(values.dtype == torch.float32 for values in gradient.values())


def test_a_head_that_is_not_plain_is_called_whole_with_a_warning(
    rows: Dataset, step: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    config = Gemma2Config(
        **SIZES, **SPECIAL, num_attention_heads=2, num_key_value_heads=2, head_dim=8, intermediate_size=32
    )
    config.final_logit_softcapping = 2.0
    model = Gemma2ForCausalLM(config)
    own = copy.deepcopy(model)
    logging.getLogger("transformers").propagate = True
    loss, _ = step(model, rows, token_loss="hinge")
    assert "logits are computed whole" in caplog.text
    expected, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        losses = torch.nn.functional.cross_entropy(own(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        expected += (losses - torch.tensor(row["token_entropies"][1:])).relu().sum().item()
        count += len(losses)
    assert loss == pytest.approx(expected / count, rel=1e-4)


def test_adapters_are_trained_with_token_losses(rows: Dataset, step: Callable) -> None:
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    loss, gradient = step(model, rows, token_loss="hinge")
    moved = {name for name, values in gradient.items() if values.any()}
    assert moved and all("lora_" in name for name in moved)
    accumulated = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": ROWS}
    torch.manual_seed(1)
    again = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    assert_same((loss, gradient), step(again, rows, token_loss="hinge", **accumulated))
