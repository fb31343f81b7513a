"""A record of what made rows on disk: a model must not read another tokenizer's ids."""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_eem.data.tokenizer import rust_tokenizer
from modeling_eem.files import read_record

FINGERPRINT_FILE = "fingerprint.json"


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A SHA-256 of the special tokens and of all that decides a text's ids; saving and loading keeps it."""
    backend = json.loads(rust_tokenizer(tokenizer).to_str())
    parts = {name: backend[name] for name in ("model", "added_tokens", "normalizer", "pre_tokenizer")}
    parts["special"] = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """`tokenizer_fingerprint`; of a tokenizer in Python (ByT5's, say) that of its vocabulary, for all there is."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return tokenizer_fingerprint(tokenizer)
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def read_fingerprint(folder: str | Path) -> dict[str, Any]:
    """What `eem data prepare` wrote about a folder's rows; ValueError if it is missing or damaged."""
    path = Path(folder) / FINGERPRINT_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {FINGERPRINT_FILE}: make it with `eem data prepare`.")
    return read_record(path, {"tokenizer": str, "vocab_size": int, "rows": str, "max_length": int})


def check_fingerprint(folder: str | Path, tokenizer_or_config: PreTrainedTokenizerBase | PreTrainedConfig) -> None:
    """Refuse rows that were not made for a model.

    Only a tokenizer settles it. A config can tell whether the number of tokens differs, and whether the model takes
    packed rows: entropy estimation models and autoencoders do not, because a code describes one text.

    Raises:
        ValueError: if the rows hold another tokenizer's ids, or are packed and the config's model refuses them.
    """
    made = read_fingerprint(folder)
    if isinstance(tokenizer_or_config, PreTrainedTokenizerBase):
        if tokenizer_fingerprint(tokenizer_or_config) != made["tokenizer"]:
            raise ValueError(
                f"the rows in {folder} were made with another tokenizer: prepare the text again with this one."
            )
        return
    config = tokenizer_or_config.get_text_config()
    if config.vocab_size < made["vocab_size"]:  # some models round their vocabulary up
        raise ValueError(
            f"the rows in {folder} were made with {made['vocab_size']:,} tokens, and the model has "
            f"{config.vocab_size:,}: prepare the text again with the model's tokenizer."
        )
    if made["rows"] == "pack" and config.model_type in ("eem", "eem_autoencoder"):
        raise ValueError(
            f"the rows in {folder} are packed, and a code describes one text: use --rows windows or stream."
        )
