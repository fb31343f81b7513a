"""Models and their tokenizers from folders; a missing or wrong one is an error before any work."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from modeling_eem.data.collator import CausalCollator
from modeling_eem.files import short_names
from modeling_eem.loading import check_tokenizer, context_length, load_config, load_model, load_tokenizer, padding_id
from modeling_eem.models.configuration_eem import has_code, is_autoencoder
from modeling_eem.models.quantization_eem import CODE_FORMATS

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model's folder, read just far enough to tell whether the model can be evaluated.

    Attributes:
        name: the folder's name, as tables show it.
    """

    name: str
    folder: Path
    config: PreTrainedConfig
    tokenizer: Tokenizer

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model in float32 and evaluation mode, loaded on first use; its codes are stored as `config` says.

        Raises:
            ValueError: as in `load_model`, for missing, extra or damaged weights, or a model that sees later tokens.
        """
        kind = "autoencoder" if is_autoencoder(self.config) else "causal"
        return load_model(self.folder, kind, config=self.config)

    @property
    def context(self) -> int | None:
        """n, the most tokens that the model takes, BOS included; None for a config without a limit (Mamba, Bloom)."""
        return context_length(self.config)

    @property
    def code_size(self) -> int:
        """Numbers in a code; 0 for a causal model."""
        return self.config.code_size if has_code(self.config) else 0

    def collator(self, max_length: int) -> CausalCollator:
        """A collator for rows of at most `max_length` tokens; any token may pad, because padding is masked."""
        return CausalCollator(
            pad_token_id=padding_id(self.tokenizer),
            vocab_size=self.config.get_text_config().vocab_size,
            max_length=max_length,
        )


def load_checkpoints(folders: Sequence[Path], code_dtype: str | None = None) -> list[Checkpoint]:
    """Checkpoints of causal models, entropy estimation models and autoencoders, this project's or others.

    Args:
        folders: as `save_pretrained` writes them, with the tokenizer's files beside the model's.
        code_dtype: the format that codes are stored in; by default the checkpoint's.

    Raises:
        ValueError: for an unknown format; a folder that is named twice, is missing or lacks the model or its
            tokenizer; a tokenizer without BOS or with more tokens than the model; and a format without any code.
    """
    if code_dtype is not None and code_dtype not in CODE_FORMATS:
        raise ValueError(f"code_dtype must be one of {', '.join(CODE_FORMATS)}; got {code_dtype!r}.")
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no model: name a folder with config.json, as save_pretrained writes it.")
        if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
            raise ValueError(f"{folder} holds no tokenizer: save the model's tokenizer in the same folder.")
        if [other.resolve() for other in folders].count(folder.resolve()) > 1:
            raise ValueError(f"{folder} is named twice: leave one out.")
    checkpoints = [_load(folder, name, code_dtype) for folder, name in zip(folders, short_names(folders))]
    if code_dtype is not None and not any(has_code(checkpoint.config) for checkpoint in checkpoints):
        raise ValueError("code_dtype is the format of a code, and no model here has one: leave it out.")
    return checkpoints


def _load(folder: Path, name: str, code_dtype: str | None) -> Checkpoint:
    tokenizer = load_tokenizer(folder)
    config = load_config(folder)
    if tokenizer.bos_token_id is None:
        raise ValueError(f"{folder}: the tokenizer has no BOS token, which every row begins with: set its bos_token.")
    check_tokenizer(config, tokenizer, folder)
    if code_dtype is not None and has_code(config):
        config.code_dtype = code_dtype
    return Checkpoint(name, folder, config, tokenizer)


def common_context(checkpoints: Sequence[Checkpoint], context: int | None = None) -> int:
    """Tokens in a row for all the models: `context`, or the n that they share.

    Raises:
        ValueError: if `context` is missing and the models' n differ or one has no limit, or if a model cannot take it.
    """
    contexts = {checkpoint.name: checkpoint.context for checkpoint in checkpoints}
    if context is None:
        limits = {length for length in contexts.values() if length is not None}
        if not limits or len(limits) < len(set(contexts.values())):
            endless = ", ".join(name for name, length in contexts.items() if length is None)
            raise ValueError(f"{endless} takes rows of any length: choose how many tokens with --context.")
        if len(limits) > 1:
            listed = ", ".join(f"{name} {length:,}" for name, length in contexts.items())
            raise ValueError(f"the models have different contexts ({listed}): choose the rows' with --context.")
        return limits.pop()
    for name, length in contexts.items():
        if context < 2 or (length is not None and context > length):
            takes = "2 tokens or more" if length is None else f"2 to {length:,} tokens"
            raise ValueError(f"{name} takes rows of {takes}, not {context:,}: change --context.")
    return context
