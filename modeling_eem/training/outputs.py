"""What stands beside a run's weights: its learning curve, its numbers and its model card."""

import json
import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from transformers import TrainerState

from modeling_eem.bits import nats_to_bits
from modeling_eem.files import command_without_secrets, write_atomically
from modeling_eem.models.configuration_eem import EEMConfig, EncoderDecoderConfig
from modeling_eem.report import LearningCurve, Table, learning_curves, model_card, provenance
from modeling_eem.training.experiment import Run

DESCRIPTIONS = ("README.md", "results.json", "learning_curve.png")
_PACKAGES = ("modeling-eem", "torch", "transformers", "datasets", "accelerate")
_SAMPLE = 1000  # rows that tell how many tokens a byte has


def learning_curve(run: Run, state: TrainerState, name: str | None = None) -> LearningCurve:
    """Held-out values over the real tokens that were trained on; and training losses, where they are in the same unit.

    Training losses are nats a token. In bits per byte, the code that they were shown included, they compare.
    """
    key = run.metrics.key
    points = [(entry["num_input_tokens_seen"], entry[key]) for entry in state.log_history if key in entry]
    losses = [(entry["num_input_tokens_seen"], entry["loss"]) for entry in state.log_history if "loss" in entry]
    if not run.is_regression and run.arguments.token_loss != "cross_entropy":
        losses = []
    if key == "eval_bits_per_byte":
        sample = run.train_rows[:_SAMPLE]
        num_bytes = sum(sample["num_bytes"])
        tokens = sum(map(len, sample["input_ids"])) - len(sample["num_bytes"])  # BOS is given
        code = run.code_bits * len(sample["num_bytes"]) / num_bytes
        losses = [(seen, nats_to_bits(loss) * tokens / num_bytes + code) for seen, loss in losses]
    return LearningCurve(name or run.name, held_out=points, train=losses)


def describe(folder: Path, run: Run, state: TrainerState) -> None:
    """Write `learning_curve.png`, `results.json` and the model card `README.md` beside a checkpoint's weights."""
    curve = learning_curve(run, state)
    learning_curves(folder / "learning_curve.png", [curve], unit=run.metrics.unit, title=run.name)
    results = _results(run, state, curve)
    write_atomically(folder / "results.json", json.dumps(results, indent=2) + "\n")
    write_atomically(folder / "README.md", _card(run, results))


def held_out_metrics(run: Run, state: TrainerState) -> dict[str, float]:
    """What the last evaluation found, by the names of `TokenMetrics` or `EntropyMetrics`."""
    last = next(entry for entry in reversed(state.log_history) if run.metrics.key in entry)
    names = ("bits_per_byte", "cross_entropy", "token_accuracy", "mean_squared_error")
    return {name: last[f"eval_{name}"] for name in names if f"eval_{name}" in last}


def _results(run: Run, state: TrainerState, curve: LearningCurve) -> dict[str, Any]:
    return {
        "name": run.name,
        "model_type": run.config.model_type,
        "parameters": run.model.num_parameters(),
        "step": state.global_step,
        "max_steps": state.max_steps,
        "rows_per_step": run.rows_per_step,
        "max_length": run.collator.max_length,
        "tokens": state.num_input_tokens_seen,
        "token_loss": "mean squared error of entropies" if run.is_regression else run.arguments.token_loss,
        "code_bits_per_row": run.code_bits,
        "unit": run.metrics.unit,
        "held_out": held_out_metrics(run, state),
        "curve": [list(point) for point in curve.held_out],
        **_origin(),
    }


def _origin() -> dict[str, str]:
    """Where the numbers come from, with nothing that is secret or this machine's."""
    origin = provenance(_PACKAGES)
    return {**origin, "command": shlex.join(command_without_secrets(shlex.split(origin["command"])))}


def _card(run: Run, results: dict[str, Any]) -> str:
    step, unit = results["step"], results["unit"]
    value = results["held_out"][run.metrics.key.removeprefix("eval_")]
    named = {
        "parameters": f"{results['parameters']:,}",
        "steps": f"{step:,} of {results['max_steps']:,}",
        "rows a step": str(results["rows_per_step"]),
        "tokens a row": str(results["max_length"]),
        "tokens seen": f"{results['tokens']:,}",
        "loss": results["token_loss"],
        "learning rate": f"{run.arguments.learning_rate:g}",
        "text": ", ".join(Path(name).name for name in (run.data.train_rows, *run.data.train_files) if name),
        **{name: results[name] for name in ("command", "commit", "versions", "machine", "date")},
    }
    card = model_card(
        ModelCardData(library_name="transformers", pipeline_tag=_pipeline_tag(run), tags=[run.config.model_type]),
        title=run.name,
        summary=(
            f"`{run.config.model_type}` of {results['parameters'] / 1e6:.1f} M parameters after {step:,} training "
            f"steps: {value:.3f} {unit}."
        ),
        usage=_usage(run),
        results=Table(
            columns=("held out", "value"),
            rows=[(name, held_out) for name, held_out in results["held_out"].items()],
            notes=(
                "Measured on rows that were held out of training. bits_per_byte counts the code and the lengths of "
                "short rows; cross_entropy is nats a token without them.",
            ),
            formats={"value": ".4f"},
        ),
        training=Table(columns=("setting", "value"), rows=list(named.items())),
        limits=_limits(run),
        figures={"learning curve": "learning_curve.png"},
    )
    return str(card)


def _limits(run: Run) -> list[str]:
    limits = ["It has met one kind of text, and the rows held out of training are of the same kind."]
    if isinstance(run.config, EEMConfig) and not run.config.random_prefix_probability:
        limits.append("It has met whole rows only, so entropies from its codes of prefixes are extrapolations.")
    if isinstance(run.config, EncoderDecoderConfig) and run.code_bits is None:
        limits.append("Its code has no storage format (`code_dtype`), so its bits are not counted.")
    return limits


def _pipeline_tag(run: Run) -> str:
    if run.is_regression:
        return "token-classification"
    return "feature-extraction" if run.is_autoencoder else "text-generation"


def _usage(run: Run) -> str:
    """Loads the folder that the card is in, and does the obvious thing."""
    auto_class = "AutoModelForTokenClassification" if run.is_regression else "AutoModelForCausalLM"
    auto_class = "AutoModel" if run.is_autoencoder else auto_class
    lines = [
        f"from transformers import {auto_class}, AutoTokenizer\n",
        'folder = "."  # of this card, or the name of its repository',
        f"model = {auto_class}.from_pretrained(folder, trust_remote_code=True)",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        'text = tokenizer("The sea was calm.", return_tensors="pt")',
    ]
    if run.is_regression:
        lines.append("print(model(**text).logits[0, :, 0])  # nats")
    elif run.is_autoencoder:
        lines.append("print(tokenizer.decode(model.reconstruct(model.encode(**text), text.attention_mask)[0]))")
    elif isinstance(run.config, EEMConfig):
        lines.append("print(tokenizer.decode(model.generate(code=model.encode(**text), max_new_tokens=8)[0]))")
    else:
        lines.append("print(tokenizer.decode(model.generate(**text, max_new_tokens=8)[0]))")
    return "\n".join(lines)
