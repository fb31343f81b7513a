"""The card of a trained checkpoint, fit for the Hub, for every command that trains.

The front matter is for the Hub: licence, language, data sets, base model, and the measured numbers as `model-index`.
The text below is for people, in sentences that hold for this kind of model. The caller measures and passes plain
values.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_eem.files import without_secrets
from modeling_eem.report.cards import model_card
from modeling_eem.report.tables import Table

ModelKind = Literal["causal", "eem", "autoencoder", "regression"]

_KINDS: dict[ModelKind, tuple[str, str, str]] = {  # kind → name, what it does, the Hub's task
    "causal": ("causal language model", "It predicts each token from those before it.", "text-generation"),
    "eem": (
        "entropy estimation model",
        "Its encoder reads a text into a code; its decoder predicts each token from that and the tokens before it.",
        "text-generation",
    ),
    "autoencoder": (
        "text autoencoder",
        "Its encoder reads a text into a code, from which alone its decoder regenerates all tokens at once.",
        "feature-extraction",
    ),
    "regression": (
        "entropy regression model",
        "It gives each token of a text its entropy in nats, in one pass.",
        "token-classification",
    ),
}
_CLASSES: dict[ModelKind, str] = {
    "causal": "AutoModelForCausalLM",
    "eem": "AutoModelForCausalLM",
    "autoencoder": "AutoModel",
    "regression": "AutoModelForTokenClassification",
}
_CALLS: dict[ModelKind, str] = {
    "causal": "print(tokenizer.decode(model.generate(**text, max_new_tokens=20)[0]))",
    "eem": "print(tokenizer.decode(model.generate(code=model.encode(**text), max_new_tokens=20)[0]))",
    "autoencoder": "print(tokenizer.decode(model.reconstruct(model.encode(**text), text.attention_mask)[0]))",
    "regression": "print(model(**text).logits[0, :, 0])  # nats, one a token",
}
_METRICS = {
    "bits_per_byte": "bits per byte, codes and lengths of short rows included",
    "cross_entropy": "nats a token, codes left out",
    "token_accuracy": "share of tokens ranked first",
    "mean_squared_error": "squared error of a token's entropy, nats²",
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_DATA = re.compile(r"hf://datasets/([^/@]+/[^/@]+)")


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """The facts on a checkpoint's card.

    Attributes:
        name: the model's name for people; the card's title and the Hub's `model_name`.
        kind: the kind of model.
        model_type: its config's type.
        num_parameters: its number of parameters.
        context: tokens of the longest rows that it was trained on.
        code_size, code_bits: numbers and bits of a code; 0 without a code; bits are None if the format is not settled.
        held_out: metric → value, measured on text held out of training.
        held_out_name: the name of that text.
        training: setting → value, as the card's table shows them.
        train_data: files, folders or Hub names of the training text; only the names of paths are shown.
        location: what the snippet loads: "." for the card's own folder, or a repository of the Hub.
        prompt: a text that the snippet gives to the model.
        licence, language: by the Hub's names; None leaves them out, because only the user knows them.
        base_model: folder or Hub name of the model that training started from.
        entropies: how the data's `token_entropies` were measured (method, model, data), if training used any.
        comparison: other codes of the same text, such as compressors → bits per byte.
        notes: lines below the numbers.
        limits: further sentences on what it cannot do, after those of its kind.
        figures: caption → file beside the card.
    """

    name: str
    kind: ModelKind
    model_type: str
    num_parameters: int
    context: int
    held_out: Mapping[str, float]
    held_out_name: str
    training: Mapping[str, str]
    train_data: Sequence[str]
    code_size: int = 0
    code_bits: float | None = 0.0
    meets_prefixes: bool = True
    location: str = "."
    prompt: str = "The sea was calm."
    licence: str | None = None
    language: str | None = None
    base_model: str | None = None
    entropies: str | None = None
    comparison: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    limits: Sequence[str] = ()
    figures: Mapping[str, str] = field(default_factory=dict)


def checkpoint_card(facts: CheckpointFacts) -> ModelCard:
    """The card as Markdown with front matter; `str(card)` is the content of README.md."""
    kind, _, _ = _KINDS[facts.kind]
    return model_card(
        _card_data(facts),
        title=f"{facts.name}: {kind}",
        summary=_summary(facts),
        usage=_usage(facts),
        results=_results(facts),
        training=Table(columns=("setting", "value"), rows=list(facts.training.items())),
        limits=_limits(facts),
        figures=facts.figures,
    )


def hub_datasets(names: Sequence[str]) -> list[str]:
    """The Hub's data sets among names of training text: `hf://datasets/ORG/NAME/…`."""
    return list(dict.fromkeys(found[1] for name in names if (found := _HUB_DATA.match(name))))


def _card_data(facts: CheckpointFacts) -> ModelCardData:
    _, _, task = _KINDS[facts.kind]
    results = [
        EvalResult(
            task_type=task,
            dataset_type=re.sub(r"[^\w.-]+", "-", facts.held_out_name).strip("-").lower() or "held-out",
            dataset_name=facts.held_out_name,
            metric_type=metric,
            metric_name=metric.replace("_", " "),
            metric_value=round(value, 6),
        )
        for metric, value in facts.held_out.items()
    ]
    return ModelCardData(
        model_name=facts.name,
        license=facts.licence,
        language=facts.language,
        library_name="transformers",
        pipeline_tag=task,
        tags=[facts.model_type],
        datasets=hub_datasets(facts.train_data) or None,
        base_model=facts.base_model if _is_on_hub(facts.base_model) else None,
        eval_results=results or None,
    )


def _is_on_hub(name: str | None) -> bool:
    return name is not None and _HUB_NAME.fullmatch(name) is not None


def _summary(facts: CheckpointFacts) -> str:
    kind, does, _ = _KINDS[facts.kind]
    article = "An" if kind[0] in "aeiou" else "A"
    sentences = [
        f"{article} {kind} (`{facts.model_type}`) of {facts.num_parameters / 1e6:.1f} M parameters, trained "
        f"on rows of up to {facts.context:,} tokens. {does}"
    ]
    if facts.code_size:
        stored = "" if facts.code_bits is None else f", {facts.code_bits:g} bits as they are stored"
        sentences.append(f"A code has {facts.code_size} numbers{stored}.")
    if facts.base_model:
        sentences.append(f"Training went on from {without_secrets(facts.base_model)}.")
    if facts.train_data:
        sentences.append(f"It was trained on {', '.join(without_secrets(facts.train_data))}.")
    if facts.entropies:
        sentences.append(f"The entropies that it was trained towards: {facts.entropies}.")
    numbers = [f"{value:.3f} {_METRICS.get(name, name)}" for name, value in facts.held_out.items()]
    if numbers:
        sentences.append(f"On text that was held out: {numbers[0]}.")
    return " ".join(sentences)


def _results(facts: CheckpointFacts) -> Table:
    rows: list[tuple[str, float, str]] = [
        (name, value, _METRICS.get(name, "")) for name, value in facts.held_out.items()
    ]
    notes = [f"Measured on {facts.held_out_name}, held out of training; the BOS of a row is given."]
    rows += [(name, value, "bits per byte of the same text") for name, value in facts.comparison.items()]
    return Table(
        columns=("measured", "value", "what it is"), rows=rows, notes=[*notes, *facts.notes], formats={"value": ".4f"}
    )


def _limits(facts: CheckpointFacts) -> list[str]:
    limits = [f"It has met no text but that which it was trained on, and rows of at most {facts.context:,} tokens."]
    if facts.kind == "eem":
        limits.append(
            "The code was made with the whole text in view: how well the decoder predicts from it does not say how "
            "well the text could be foretold."
        )
        if not facts.meets_prefixes:
            limits.append("It has met whole rows only, so entropies from its codes of prefixes are extrapolations.")
    if facts.code_size and facts.code_bits is None:
        limits.append("Its code has no storage format (`code_dtype`), so its bits are not counted.")
    return [*limits, *facts.limits]


def _usage(facts: CheckpointFacts) -> str:
    auto_class = _CLASSES[facts.kind]
    where = "the folder of this card" if facts.location == "." else "this repository"
    return "\n".join(
        [
            f"from transformers import {auto_class}, AutoTokenizer",
            "",
            f"name = {facts.location!r}  # {where}".replace("'", '"'),
            "# The model's own code, which stands beside its weights, is run only if it is trusted.",
            f"model = {auto_class}.from_pretrained(name, trust_remote_code=True)",
            "tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)",
            f'text = tokenizer("{facts.prompt}", return_tensors="pt")',
            _CALLS[facts.kind],
        ]
    )
