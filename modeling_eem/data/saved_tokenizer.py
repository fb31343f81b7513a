"""The tokenizer that is saved beside a model."""

from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def fit_to_context(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Let `truncation=True` cut texts to what the model takes: `model_max_length` becomes the config's context.

    A config without a limit (Mamba, Bloom) leaves it as it is.
    """
    if hasattr(config, "max_position_embeddings") and (config.max_position_embeddings or 0) > 0:
        tokenizer.model_max_length = config.max_position_embeddings
