"""The files beside a run's weights: its learning curve, its numbers and its model card."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerState

from modeling_eem.bits import nats_to_bits
from modeling_eem.entropy.corpus_run import ENTROPIES_FILE
from modeling_eem.files import read_record, without_secrets, write_atomically
from modeling_eem.models.configuration_eem import EEMConfig, has_code
from modeling_eem.models.loss_eem import IGNORE_INDEX
from modeling_eem.report import LearningCurve, learning_curves, provenance
from modeling_eem.report.checkpoint_card import CheckpointFacts, ModelKind, checkpoint_card
from modeling_eem.training.experiment import Run

_PACKAGES = ("modeling-eem", "torch", "transformers", "datasets", "accelerate")
_SAMPLE = 1000  # rows to count tokens per byte in


def learning_curve(run: Run, state: TrainerState, name: str | None = None) -> LearningCurve:
    """Held-out values over the real tokens trained on, and training losses if they can be given in the same unit.

    Training losses are nats a token. They are turned into bits per byte, with the code's bits added.
    """
    key = run.metrics.key
    points = [(entry["num_input_tokens_seen"], entry[key]) for entry in state.log_history if key in entry]
    losses = [(entry["num_input_tokens_seen"], entry["loss"]) for entry in state.log_history if "loss" in entry]
    if not run.is_regression and run.arguments.token_loss != "cross_entropy":
        losses = []
    if key == "eval_bits_per_byte" and (code_bits := run.code_bits) is not None:
        sample = run.train_rows.select(range(min(_SAMPLE, len(run.train_rows)))).to_list()
        num_bytes = sum(row["num_bytes"] for row in sample)
        # As a batch: without the rows' own padding, and without BOS, which is given.
        whole = replace(run.collator, random_prefix_probability=0.0)(sample)
        tokens = int((whole["labels"] != IGNORE_INDEX).sum())
        code = code_bits * len(sample) / num_bytes
        losses = [(seen, nats_to_bits(loss) * tokens / num_bytes + code) for seen, loss in losses]
    return LearningCurve(name or run.name, held_out=points, train=losses)


def describe(folder: Path, run: Run, state: TrainerState, step: int, kept: str) -> None:
    """Write `learning_curve.png`, `results.json` and the model card `README.md` beside the weights of a step.

    `kept` says in words which weights they are.
    """
    curve = learning_curve(run, state)
    learning_curves(
        folder / "learning_curve.png", [curve], unit=run.metrics.unit, title=f"Learning curve of {run.name}"
    )
    results = _results(run, state, step, kept, curve)
    write_atomically(folder / "results.json", json.dumps(results, indent=2) + "\n")
    write_atomically(folder / "README.md", _card(run, results))


def held_out_metrics(run: Run, state: TrainerState, step: int) -> dict[str, float]:
    """The results of the last evaluation up to a step, by the names of `TokenMetrics` or `EntropyMetrics`."""
    last = _last_measured(run, state, step)
    names = ("bits_per_byte", "cross_entropy", "token_accuracy", "mean_squared_error")
    return {name: last[f"eval_{name}"] for name in names if f"eval_{name}" in last}


def _last_measured(run: Run, state: TrainerState, step: int) -> dict[str, Any]:
    return next(entry for entry in reversed(state.log_history) if run.metrics.key in entry and entry["step"] <= step)


def _results(run: Run, state: TrainerState, step: int, kept: str, curve: LearningCurve) -> dict[str, Any]:
    is_last = step == state.global_step
    return {
        "name": run.name,
        "model_type": run.config.model_type,
        "parameters": run.model.num_parameters(),
        "step": step,
        "max_steps": state.max_steps,
        "rows_per_step": run.rows_per_step,
        "max_length": run.collator.max_length,
        "tokens": state.num_input_tokens_seen
        if is_last
        else _last_measured(run, state, step)["num_input_tokens_seen"],
        "token_loss": "mean squared error of entropies" if run.is_regression else run.arguments.token_loss,
        "code_bits_per_row": run.code_bits,
        "unit": run.metrics.unit,
        "held_out": held_out_metrics(run, state, step),
        "kept_model": kept,
        "curve": [list(point) for point in curve.held_out],
        **provenance(_PACKAGES),  # without secrets
    }


def _card(run: Run, results: dict[str, Any]) -> str:
    origin = ("command", "commit", "versions", "machine", "date")
    settings = {
        "steps": f"{results['step']:,} of {results['max_steps']:,}",
        "weights": results["kept_model"],
        "rows a step": str(results["rows_per_step"]),
        "tokens a row": str(results["max_length"]),
        "tokens seen": f"{results['tokens']:,}",
        "loss": results["token_loss"],
        "learning rate": f"{run.arguments.learning_rate:g}",
        "parameters": f"{results['parameters']:,}",
        **{name: results[name] for name in origin},
    }
    data, arguments, config = run.data, run.arguments, run.config
    pushed = arguments.hub_model_id if arguments.push_to_hub else None
    return str(
        checkpoint_card(
            CheckpointFacts(
                name=(arguments.hub_model_id or run.name).rpartition("/")[2],
                kind=_kind(run),
                model_type=config.model_type,
                num_parameters=results["parameters"],
                context=results["max_length"],
                code_size=config.code_size if has_code(config) else 0,
                code_bits=run.code_bits,
                meets_prefixes=config.model_type != EEMConfig.model_type or bool(config.random_prefix_probability),
                held_out=results["held_out"],
                held_out_name=", ".join(without_secrets(data.validation_files)) or "the rows' held-out split",
                training=settings,
                train_data=[data.train_rows] if data.train_rows else data.train_files,
                location=pushed if pushed and "/" in pushed else ".",
                licence=data.licence,
                language=data.language,
                base_model=config.name_or_path or None,
                entropies=entropies_origin(Path(data.train_rows)) if data.train_rows else None,
                figures={"learning curve": "learning_curve.png"},
            )
        )
    )


def _kind(run: Run) -> ModelKind:
    if run.is_regression:
        return "regression"
    if run.is_autoencoder:
        return "autoencoder"
    return "eem" if run.config.model_type == EEMConfig.model_type else "causal"


def entropies_origin(rows: Path) -> str | None:
    """How the `token_entropies` of a folder of rows were measured, in words for a card; None if unknown."""
    if not (rows / ENTROPIES_FILE).is_file():
        return None
    made = read_record(rows / ENTROPIES_FILE, {"method": str})
    models, data = without_secrets(made.get("models")), without_secrets(made.get("data"))
    named = [*models.values()] if isinstance(models, dict) else [models]
    told = f"method {made['method']}, unit {made.get('unit', 'nats')}"
    told += f", model {', '.join(str(name) for name in named if name)}" if any(named) else ""
    return told + (f", measured on {data}" if data else "")
