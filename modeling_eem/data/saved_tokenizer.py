"""The tokenizer that is saved beside a model."""

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from modeling_eem.loading import context_length


def fit_to_context(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Make `truncation=True` cut texts to what the model takes: `model_max_length` becomes the config's context.

    If the config has no limit (Mamba, Bloom), it stays as it is.
    """
    if (length := context_length(config)) is not None:
        tokenizer.model_max_length = length
