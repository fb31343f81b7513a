"""What a run file comes to: prepared rows, entropies, checkpoints to go on from, and what is refused before work."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import DatasetDict, load_from_disk
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BloomConfig,
    LlamaForCausalLM,
    MambaConfig,
)
from whole_run import train

from modeling_eem import EEMAutoencoder, EEMForCausalLM, MaskedMixerForTokenClassification
from modeling_eem.data.fingerprint import FINGERPRINT_FILE
from modeling_eem.data.prepare import Launch, RowOptions, prepare_rows
from modeling_eem.data.shards import plan_shards
from modeling_eem.training import DataArguments, RunTrainer, prepare_run
from modeling_eem.training.training_text import TextRows


@pytest.fixture(scope="module")
def prepared(run_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder of `eem data prepare`, made once for each set of options."""

    def make(**options: Any) -> Path:
        folder = tmp_path_factory.getbasetemp() / f"rows-{'-'.join(map(str, options.values()))}"
        if not folder.exists():
            shards = plan_shards([str(run_text / "train.jsonl")], "text", 100_000)
            tokenizer = AutoTokenizer.from_pretrained(run_text / "tokenizer")
            prepare_rows(
                shards,
                tokenizer,
                folder,
                RowOptions(**{"max_length": 24, "held_out": 3, **options}),
                Launch(workers=1),
            )
        return folder

    return make


@pytest.fixture(scope="module")
def with_entropies(prepared: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows with a column `token_entropies`, NaN at BOS."""
    folder = tmp_path_factory.mktemp("entropies") / "rows"
    rows = load_from_disk(prepared())
    rows.map(lambda row: {"token_entropies": [float("nan"), *(i % 3 for i in row["input_ids"][1:])]}).save_to_disk(
        folder
    )
    shutil.copy(prepared() / FINGERPRINT_FILE, folder)
    return folder


NO_TEXT = {"train_files": None, "validation_files": None}


def test_prepared_rows_are_trained_on_from_disk(write_run: Callable[..., Path], prepared: Callable[..., Path]) -> None:
    path = write_run(train_rows=str(prepared()), **NO_TEXT)
    trainer = train(path)
    run, rows = trainer.run, load_from_disk(prepared())
    assert run.train_rows.cache_files == rows["train"].cache_files, "memory-mapped, not copied"
    assert list(run.train_rows) == list(rows["train"]) and list(run.held_out_rows) == list(rows["held_out"])
    assert run.collator.max_length == 24 and "eval_bits_per_byte" in trainer.state.log_history[-2]


def test_tokens_seen_are_the_rows_own(write_run: Callable[..., Path], prepared: Callable[..., Path]) -> None:
    """Two passes over rows of unequal length; padding is not counted."""
    for rows in ("windows", "pack"):
        kind = {"rows": "pack", "max_length": 64} if rows == "pack" else {}
        changes = {"max_position_embeddings": 64} if rows == "pack" else {"random_prefix_probability": 0.0}
        model = "llama" if rows == "pack" else "eem"
        path = write_run(model, train_rows=str(prepared(**kind)), train_files=None, num_train_epochs=2, **changes)
        trainer = train(path, "--max_steps", "-1")
        tokens = 2 * sum(map(len, trainer.run.train_rows["input_ids"]))
        assert trainer.state.num_input_tokens_seen == tokens
        assert json.loads((Path(trainer.args.output_dir) / "results.json").read_text())["tokens"] == tokens
        shutil.rmtree(trainer.args.output_dir)


def test_the_held_out_loss_is_the_cross_entropy_of_any_batches(write_run: Callable[..., Path]) -> None:
    found = set()
    for size in (1, 3, 8):
        trainer = RunTrainer(prepare_run(write_run("llama", per_device_eval_batch_size=size)))
        measured = trainer.evaluate()
        assert measured["eval_loss"] == measured["eval_cross_entropy"]
        found.add(round(measured["eval_loss"], 5))
    assert len(found) == 1


def test_validation_files_come_before_the_held_out_split(
    write_run: Callable[..., Path], prepared: Callable[..., Path]
) -> None:
    run = prepare_run(write_run(train_rows=str(prepared()), train_files=None, max_held_out_rows=2))
    assert run.held_out_rows["input_ids"] != load_from_disk(prepared())["held_out"]["input_ids"]
    assert len(run.held_out_rows) == 2


def test_packed_rows_train_causal_models(write_run: Callable[..., Path], prepared: Callable[..., Path]) -> None:
    folder = str(prepared(rows="pack", max_length=64))
    with pytest.raises(ValueError, match="name validation_files"):
        prepare_run(write_run("llama", train_rows=folder, max_position_embeddings=64, **NO_TEXT))
    path = write_run("llama", train_rows=folder, max_position_embeddings=64, train_files=None)
    assert train(path).state.global_step == 2


def test_entropies_reach_the_token_loss(write_run: Callable[..., Path], with_entropies: Path) -> None:
    changes = {"train_rows": str(with_entropies), "random_prefix_probability": 0, "save_strategy": "no", **NO_TEXT}
    losses = []
    for token_loss in ("cross_entropy", "hinge"):
        trainer = RunTrainer(prepare_run(write_run(token_loss=token_loss, **changes)))
        trainer.fit()
        losses.append(trainer.state.log_history[0]["loss"])
    entropies = [e for row in trainer.run.train_rows["token_entropies"] for e in row[1:]]
    mean = sum(entropies) / len(entropies)
    assert losses[1] == pytest.approx(losses[0] - mean, abs=0.3) and losses[1] < losses[0] - 0.5


def test_scores_that_are_no_nats_weight_the_complement_alone(
    write_run: Callable[..., Path], with_entropies: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(with_entropies, tmp_path / "rows"))
    changes = {"train_rows": str(folder), **NO_TEXT}
    message = r"needs entropies in nats, and those in .*rows are change of the logits: make them with another --method"
    for unit, given in (("change of the logits", "complement"), ("nats", "hinge"), (None, "selective")):
        record = {"method": "occlusion", "unit": unit}
        (folder / "entropies.json").write_text(json.dumps({key: value for key, value in record.items() if value}))
        prepare_run(write_run("masked_mixer", token_loss=given, **changes))
    (folder / "entropies.json").write_text(json.dumps({"method": "occlusion", "unit": "change of the logits"}))
    for loss in ("distance", "hinge", "threshold", "selective"):
        with pytest.raises(ValueError, match=f"token_loss: {loss} {message}"):
            prepare_run(write_run("masked_mixer", token_loss=loss, **changes))
    with pytest.raises(ValueError, match=f"num_labels: 1 {message}"):
        prepare_run(write_run("masked_mixer", num_labels=1, **changes))


@pytest.mark.parametrize("changes", [{"token_loss": "hinge"}, {"num_labels": 1}])
def test_entropies_that_are_not_there_are_missed_before_any_work(
    write_run: Callable[..., Path], prepared: Callable[..., Path], changes: dict[str, Any]
) -> None:
    message = f"{next(iter(changes))}: .* needs train_rows with a column token_entropies"
    nowhere = {"tokenizer": "nowhere"}  # not even looked at
    with pytest.raises(ValueError, match=message):
        prepare_run(write_run("masked_mixer", **changes, **nowhere))
    with pytest.raises(ValueError, match=message):
        prepare_run(write_run("masked_mixer", train_rows=str(prepared()), **NO_TEXT, **changes, **nowhere))


def test_a_regression_is_measured_on_rows_with_entropies_alone(
    write_run: Callable[..., Path], prepared: Callable[..., Path], with_entropies: Path
) -> None:
    """Text has no entropies: the first measurement ended in a KeyError."""
    regression = {"num_labels": 1, "train_files": None}
    with pytest.raises(ValueError, match="on the rows' held-out split: .* leave validation_files out"):
        prepare_run(write_run("masked_mixer", train_rows=str(with_entropies), **regression))
    with pytest.raises(ValueError, match="or for a regression prepare unpacked rows with --held-out"):
        prepare_run(write_run("masked_mixer", train_rows=str(prepared(held_out=0)), **NO_TEXT, num_labels=1))


@pytest.mark.parametrize("model_type", ["masked_mixer", "llama"])
@pytest.mark.parametrize("alignment", ["prefix", "token"])
def test_regression_trains_and_is_measured_by_its_own_error(
    write_run: Callable[..., Path], with_entropies: Path, tmp_path: Path, model_type: str, alignment: str
) -> None:
    changes = {"train_rows": str(with_entropies), "num_labels": 1, "regression_alignment": alignment, **NO_TEXT}
    trainer = train(write_run(model_type, **changes))
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "out").eval()
    errors = []
    for row in load_from_disk(with_entropies)["held_out"]:
        scores = model(torch.tensor([row["input_ids"]])).logits[0, :, 0]
        scores = scores[:-1] if alignment == "prefix" else scores[1:]
        errors.append((scores - torch.tensor(row["token_entropies"][1:])).square())
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["held_out"] == {"mean_squared_error": pytest.approx(torch.cat(errors).mean().item(), rel=1e-5)}
    assert results["unit"] == "held-out squared error, nats²" and trainer.state.global_step == 2
    assert "AutoModelForTokenClassification" in (tmp_path / "out" / "README.md").read_text()


def test_a_mixture_of_experts_trains_and_resumes(write_run: Callable[..., Path], tmp_path: Path) -> None:
    """Its router's loss comes before its logits, and transformers saves its experts one by one."""
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "output_router_logits": True}
    path = write_run("llama", load_best_model_at_end=True, save_steps=1)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"model_type": "mixtral", **experts}))
    trainer = train(path)
    assert trainer.run.metrics.key in trainer.state.log_history[-2]
    whole = (tmp_path / "out" / "model.safetensors").read_bytes()
    finished = train(path)
    assert finished.run.is_finished
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(finished.model.state_dict()[name], weight), name
    shutil.rmtree(tmp_path / "out" / "checkpoint-2")
    (tmp_path / "out" / "complete.json").unlink()
    resumed = train(path)
    assert resumed.run.checkpoint == tmp_path / "out" / "checkpoint-1"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == whole


def test_an_autoencoder_trains_and_is_measured(write_run: Callable[..., Path], tmp_path: Path) -> None:
    trainer = train(write_run("eem_autoencoder"))
    assert isinstance(trainer.run.model, EEMAutoencoder) and trainer.run.code_bits == 16 * 8 + 32
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["held_out"]["bits_per_byte"] > 0 and len(results["curve"]) == 2


def test_the_prefix_probability_is_recorded(write_run: Callable[..., Path], tmp_path: Path) -> None:
    trainer = train(write_run(), "--random_prefix_probability", "0.25")
    assert trainer.run.collator.random_prefix_probability == 0.25
    assert json.loads((tmp_path / "out" / "config.json").read_text())["random_prefix_probability"] == 0.25


# Fine-tuning


@pytest.fixture(scope="module")
def checkpoints(run_values: Callable[..., dict], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The output of a run of a model type, trained once."""

    def of(model_type: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / f"trained-{model_type}"
        if not folder.exists():
            folder.mkdir()
            (folder / "run.yaml").write_text(yaml.safe_dump(run_values(model_type, output_dir=str(folder / "out"))))
            train(folder / "run.yaml")
        return folder / "out"

    return of


@pytest.mark.parametrize("model_type", ["llama", "eem"])
def test_any_causal_model_is_fine_tuned_with_entropies(
    write_run: Callable[..., Path], checkpoints: Callable[[str], Path], with_entropies: Path, model_type: str
) -> None:
    before = checkpoints(model_type)
    changes = NO_TEXT | {"tokenizer": None, "token_loss": "complement", "train_rows": str(with_entropies)}
    run = prepare_run(write_run(None, model_name_or_path=str(before), **changes))
    assert isinstance(run.model, LlamaForCausalLM if model_type == "llama" else EEMForCausalLM)
    saved = AutoModelForCausalLM.from_pretrained(before)
    for name, weight in saved.named_parameters():
        assert torch.equal(dict(run.model.named_parameters())[name], weight) and weight.dtype == torch.float32
    trainer = RunTrainer(run)
    trainer.fit()
    assert any(not torch.equal(a, b) for a, b in zip(saved.parameters(), trainer.model.parameters()))


def test_beside_a_checkpoint_stand_only_keys_that_keep_its_weights(
    write_run: Callable[..., Path], checkpoints: Callable[[str], Path]
) -> None:
    model = {"model_name_or_path": str(checkpoints("eem"))}
    path = write_run(None, **model, random_prefix_probability=0.75, noise_scale=0, code_dtype="float16")
    config = prepare_run(path).config
    assert (config.random_prefix_probability, config.noise_scale, config.code_dtype) == (0.75, 0.0, "float16")
    with pytest.raises(ValueError, match="bottleneck_size is fixed by the model in"):
        prepare_run(write_run(None, **model, bottleneck_size=8))
    with pytest.raises(ValueError, match="name one"):
        prepare_run(write_run("eem", **model))
    with pytest.raises(ValueError, match="model_name_or_path: no model in 'nowhere'"):
        prepare_run(write_run(None, model_name_or_path="nowhere"))


def test_a_language_model_becomes_a_regression(
    write_run: Callable[..., Path], checkpoints: Callable[[str], Path], with_entropies: Path
) -> None:
    model_name = str(checkpoints("masked_mixer"))
    changes = NO_TEXT | {"num_labels": 1, "train_rows": str(with_entropies)}
    run = prepare_run(write_run(None, model_name_or_path=model_name, **changes))
    assert isinstance(run.model, MaskedMixerForTokenClassification)
    body = AutoModelForCausalLM.from_pretrained(model_name).model.state_dict()
    assert all(torch.equal(run.model.model.state_dict()[name], value) for name, value in body.items())


def test_a_trained_regression_is_trained_on_with_its_alignment(
    write_run: Callable[..., Path], with_entropies: Path, tmp_path: Path
) -> None:
    changes = NO_TEXT | {"num_labels": 1, "train_rows": str(with_entropies)}
    train(write_run("masked_mixer", **changes, regression_alignment="token", output_dir=str(tmp_path / "before")))
    path = write_run(None, model_name_or_path=str(tmp_path / "before"), **changes)
    trainer = train(path)
    assert trainer.run.model.config.regression_alignment == "token" and not trainer.run.metrics.is_shifted
    assert trainer.run.record["training"]["regression_alignment"] == "token"
    with pytest.raises(ValueError, match="regression_alignment is 'prefix', and the model was trained with 'token'"):
        prepare_run(path, ["--regression_alignment", "prefix"])


# What is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train_rows": "rows"}, "train_files and train_rows both say"),
        ({"train_files": None, "train_rows": "rows", "max_length": 8}, "max_length is for train_files"),
        ({"train_files": None, "train_rows": "nowhere"}, "nowhere holds no fingerprint.json"),
        ({"train_files": None}, "train_files is empty"),
        ({"validation_files": None}, "validation_files is empty"),
        ({"padding_side": "both"}, "padding_side must be left or right"),
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"max_held_out_rows": 0}, "max_held_out_rows must be at least 1"),
        ({"max_length": 25}, "max_length is 25, and the model takes 24 tokens"),
        ({"rows": "pack"}, "rows: pack is for causal models"),
        ({"load_best_model_at_end": True, "save_strategy": "no"}, "need measurements and checkpoints"),
        ({"early_stopping_patience": 1, "eval_strategy": "no"}, "need measurements and checkpoints"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type must not depend on measurements"),
        ({"lr_scheduler_type": "greedy"}, "lr_scheduler_type must not depend on measurements"),
        ({"early_stopping_patience": 0}, "early_stopping_patience must be from 1 to"),
        ({"early_stopping_patience": 1, "metric_for_best_model": "bleu"}, "metric_for_best_model must be one of"),
        ({"hub_strategy": "checkpoint"}, "hub_strategy must be end or every_save"),
        ({"random_prefix_probability": 1.5}, "random_prefix_probability must be within 0 and 1"),
        ({"num_labels": 1}, "num_labels: 1 needs"),
    ],
)
def test_contradictions_are_named(write_run: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_run(write_run(**changes))


def test_a_model_without_a_context_length_takes_rows_of_a_length_that_is_named(run_text: Path) -> None:
    data = {"train_files": ["a"], "validation_files": ["b"]}
    config, tokenizer = MambaConfig(vocab_size=280), AutoTokenizer.from_pretrained(run_text / "tokenizer")
    with pytest.raises(ValueError, match="a mamba model takes rows of any length: set max_length"):
        TextRows(DataArguments(**data)).check(config, tokenizer)
    rows = TextRows(DataArguments(**data, max_length=5000))
    rows.check(config, tokenizer)
    assert rows.max_length(config) == 5000


def test_rows_that_do_not_fit_are_named(
    write_run: Callable[..., Path], prepared: Callable[..., Path], tmp_path: Path
) -> None:
    rows = str(prepared())
    committed = str(Path(__file__).parents[2] / "tokenizer")
    mixer = {"train_rows": rows, **NO_TEXT}
    for changes, message in (
        ({"max_position_embeddings": 16}, "have up to 24 tokens, and the model takes 16"),
        ({"rows": "stream"}, "are windows, not stream: leave rows out"),
        ({"tokenizer": committed, "vocab_size": 8000}, "made with another tokenizer"),
        ({"train_rows": str(prepared(held_out=0))}, "no held-out rows .*: name validation_files"),
        ({"vocab_size": 281}, "the tokenizer has 280 tokens and the model 281"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_run(write_run("masked_mixer", **mixer | changes))
    shutil.copytree(rows, tmp_path / "torn")
    (tmp_path / "torn" / "dataset_dict.json").unlink()
    with pytest.raises(ValueError, match="is not complete: run `eem data prepare` again"):
        prepare_run(write_run("masked_mixer", **mixer | {"train_rows": str(tmp_path / "torn")}))
    DatasetDict({"test": load_from_disk(rows)["train"]}).save_to_disk(tmp_path / "other")
    shutil.copy(Path(rows) / FINGERPRINT_FILE, tmp_path / "other")
    with pytest.raises(ValueError, match="has no split 'train'"):
        prepare_run(write_run("masked_mixer", **mixer | {"train_rows": str(tmp_path / "other")}))


def test_a_model_without_a_context_needs_max_length() -> None:
    """It ended in an AttributeError."""
    files = {"train_files": ["train.txt"], "validation_files": ["held_out.txt"]}
    config, short = BloomConfig(), TextRows(DataArguments(**files, max_length=32))
    short.check(config, None)
    assert short.max_length(config) == 32
    with pytest.raises(ValueError, match="a bloom model takes rows of any length: set max_length"):
        TextRows(DataArguments(**files)).check(config, None)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"dataloader_drop_last": True, "per_device_train_batch_size": 1000},
            "dataloader_drop_last: true leaves none",
        ),
        (
            {"metric_for_best_model": "mean_squared_error"},
            "'mean_squared_error' is not measured of this kind of model",
        ),
        (
            {"metric_for_best_model": "bits_per_byte", "code_dtype": None},
            "'bits_per_byte' is not measured of this kind",
        ),
    ],
)
def test_a_run_that_would_train_nothing_or_measure_nothing(
    write_run: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_run(write_run(**changes))


def test_a_schedules_wrong_keyword_is_one_line(write_run: Callable[..., Path]) -> None:
    run = prepare_run(write_run(lr_scheduler_type="cosine", lr_scheduler_kwargs={"foo": 2}))
    with pytest.raises(ValueError, match="lr_scheduler_kwargs of .*'foo'"):
        RunTrainer(run).fit()
