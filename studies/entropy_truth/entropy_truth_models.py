"""The small models of the truth benchmark, and their training on rows of symbols.

Rows are BOS and symbols. Shapes: R rows, T tokens.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory

from datasets import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from modeling_eem import (
    EEMConfig,
    EEMForCausalLM,
    MaskedMixerConfig,
    MaskedMixerForCausalLM,
    MaskedMixerForTokenClassification,
)
from modeling_eem.data import CausalCollator
from modeling_eem.training import TokenWeightedTrainer, TokenWeightedTrainingArguments

BACKBONES = ("mixer", "llama")
RANDOM_PREFIXES = 0.5


@dataclass(frozen=True)
class Schedule:
    """How every model trains; the learning rate falls to 0 in a line after a tenth of the steps.

    Attributes:
        snapshots: the steps after which a copy of the model is kept; training ends at the last.
    """

    snapshots: tuple[int, ...]
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Shape:
    """Of the causal models, the decoders and the regression; encoders are half as wide."""

    width: int
    layers: int
    heads: int
    code_size: int


def _backbone(
    name: str, width: int, shape: Shape, length: int, vocab_size: int, **options: object
) -> PreTrainedConfig:
    common = {"vocab_size": vocab_size, "hidden_size": width, "num_hidden_layers": shape.layers}
    common |= {"max_position_embeddings": length, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    if name == "mixer":
        return MaskedMixerConfig(**common, num_mixing_heads=shape.heads, **options)
    return LlamaConfig(**common, intermediate_size=4 * width, num_attention_heads=shape.heads)


def causal_model(name: str, shape: Shape, length: int, vocab_size: int) -> PreTrainedModel:
    config = _backbone(name, shape.width, shape, length, vocab_size)
    return (MaskedMixerForCausalLM if name == "mixer" else LlamaForCausalLM)(config)


def regression_model(name: str, shape: Shape, length: int, vocab_size: int) -> PreTrainedModel:
    config = _backbone(name, shape.width, shape, length, vocab_size)
    config.num_labels = 1
    return (MaskedMixerForTokenClassification if name == "mixer" else LlamaForTokenClassification)(config)


def eem_model(name: str, shape: Shape, length: int, vocab_size: int) -> EEMForCausalLM:
    """Both halves of one kind; training meets the noise of its code's format, and prefixes of every length."""
    options = {"position_alignment": "right"} if name == "mixer" else {}
    config = EEMConfig(
        encoder_config=_backbone(name, shape.width // 2, shape, length, vocab_size, **options),
        decoder_config=_backbone(name, shape.width, shape, length + 1, vocab_size),
        bottleneck_size=shape.code_size,
        noise_scale=1 / 16,  # half a step of e4m3 around 1
        code_dtype="float8_e4m3fn",
        random_prefix_probability=RANDOM_PREFIXES,
    )
    return EEMForCausalLM(config)


class _Snapshots(TrainerCallback):
    """Keeps copies of the model, free of what the trainer hung on it."""

    def __init__(self, steps: Sequence[int]):
        self.steps = steps
        self.models: dict[int, PreTrainedModel] = {}

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel,
        **kwargs: object,
    ) -> None:
        if state.global_step in self.steps:
            kept = type(model)(copy.deepcopy(model.config))
            kept.load_state_dict(model.state_dict())
            self.models[state.global_step] = kept.eval()


def train(
    model: PreTrainedModel, rows: Dataset, schedule: Schedule, seed: int, alignment: str = "prefix"
) -> dict[int, PreTrainedModel]:
    """The model after each of the schedule's snapshot steps.

    Args:
        rows: `input_ids`; for a regression also `token_entropies`, in nats.
        alignment: of a regression, see `TokenWeightedTrainingArguments`.
    """
    set_seed(seed)
    config, steps = model.config, schedule.snapshots[-1]
    snapshots = _Snapshots(schedule.snapshots)
    with TemporaryDirectory() as folder:
        trainer = TokenWeightedTrainer(
            model=model,
            args=TokenWeightedTrainingArguments(
                output_dir=folder,
                regression_alignment=alignment,
                learning_rate=schedule.learning_rate,
                lr_scheduler_type="linear",
                warmup_steps=steps // 10,
                max_steps=steps,
                per_device_train_batch_size=schedule.batch_size,
                max_grad_norm=1.0,
                weight_decay=0.0,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
                seed=seed,
            ),
            data_collator=CausalCollator(
                config.pad_token_id,
                config.vocab_size,
                config.max_position_embeddings,
                random_prefix_probability=RANDOM_PREFIXES if isinstance(model, EEMForCausalLM) else 0.0,
            ),
            train_dataset=rows,
            callbacks=[snapshots],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return snapshots.models
