"""Loads models and tokenizers from folders or the Hub. Missing, damaged or foreign files are an error of one line.

What is unusual:

* `from_pretrained` fills missing weights with random numbers and only logs it; here missing, extra and mismatched
  weights are errors.
* Libraries raise many kinds of error on damaged files; each becomes one ValueError that names the file or folder.
* Sizes are compared with the files before anything is built: building 2⁷⁰ layers would never end.
* A folder that a training ended in lists its files, and is compared with that list.
* Whether a causal model sees later tokens is tested on values: no config says it for every model.
"""

import copy
import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatch
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.utils import logging as hub_logging
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import logging

import modeling_eem.registration  # noqa: F401  # a program may have imported the codec alone
from modeling_eem.files import is_path_to_nothing, readable, sha256
from modeling_eem.models.configuration_eem import is_autoencoder
from modeling_eem.models.loss_eem import is_plain_linear

COMPLETE_FILE = "complete.json"  # what a training ends with: its files, with their sizes and hashes

ModelKind = Literal["causal", "token_classifier", "autoencoder"]

_NAMES: dict[ModelKind, str] = {
    "causal": "causal language model",
    "token_classifier": "token classifier",
    "autoencoder": "autoencoder",
}
_LARGEST_SIZE = 2**31
_ROUNDING = 1e-5  # of float32, in a mixture of experts, where shapes of products change
_LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
# Their positions begin after the padding token's id, so a table of 514 positions takes 512 tokens.
_POSITIONS_BEHIND_PADDING = frozenset(
    ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod")
)


def load_config(name: str | Path) -> PreTrainedConfig:
    """A model's config.

    Raises:
        ValueError: for a config that is damaged, or holds a size that no model has; OSError if there is none.
    """
    check_name(name)
    _check_unchanged(name, "config.json")
    with reading(name, "config.json"):
        config = AutoConfig.from_pretrained(name)
    _check_sizes(name, config.to_dict())
    return config


def load_model(
    name: str | Path,
    kind: ModelKind = "causal",
    dtype: str = "float32",
    config: PreTrainedConfig | None = None,
    new_head: bool = False,
) -> PreTrainedModel:
    """A model with all its weights, in evaluation mode, on the CPU.

    Args:
        config: the folder's config with some changes; by default the folder's own.
        new_head: allow a head that is missing or differs from the checkpoint's, as at the start of a fine-tuning.

    Raises:
        ValueError: for a folder of another kind of model; missing, extra, mismatched or damaged weights; sizes that do
            not match the files; a causal model or token classifier that sees later tokens. OSError without a model.
    """
    config = load_config(name) if config is None else config
    auto_class = model_class(config, kind, name)
    _check_files(Path(name), config)
    with reading(name, "weights"):
        model, found = auto_class.from_pretrained(
            name, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    _check_weights(name, model, found, kind, new_head)
    check_finite(model.named_parameters(), name)
    if kind != "autoencoder":
        check_causal(model)
    return model.eval()


def check_weights(name: str | Path, kind: ModelKind = "causal") -> PreTrainedConfig:
    """Compare a checkpoint's weights with its config by name and shape, without reading their values.

    Returns:
        The config.

    Raises:
        ValueError: as in `load_model`, except for a model that sees later tokens.
    """
    config = load_config(name)
    auto_class = model_class(config, kind, name)
    _check_files(Path(name), config)
    with reading(name, "weights"):
        model, found = auto_class.from_pretrained(
            name, config=config, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True
        )
    _check_weights(name, model, found, kind, new_head=False)
    return config


def model_class(config: PreTrainedConfig, kind: ModelKind, name: str | Path) -> Any:
    """The Auto class of a kind of model; ValueError for a config that has no such model."""
    if kind == "autoencoder":
        auto_class, has_kind = AutoModel, is_autoencoder(config)
    elif kind == "causal":
        auto_class, has_kind = AutoModelForCausalLM, type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    else:
        auto_class, has_kind = AutoModelForTokenClassification, type(config) in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
    if not has_kind:
        raise ValueError(f"{name} holds a model of the type {config.model_type!r}, which is no {_NAMES[kind]}.")
    return auto_class


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or the Hub; ValueError for a damaged one, OSError if there is none."""
    check_name(name)
    _check_unchanged(name, "tokenizer*.json", "special_tokens_map.json", "*.jinja")
    with reading(name, "tokenizer"):
        return AutoTokenizer.from_pretrained(name)


def check_name(name: str | Path) -> None:
    """OSError for a path to nothing, before the Hub is asked for it."""
    if is_path_to_nothing(name):
        raise OSError(f"{name} does not exist: name a folder that save_pretrained wrote, or a repository of the Hub.")


def own_tokenizer(name: str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a model's folder; None for a folder without one."""
    folder = Path(name)
    if folder.is_dir() and not (folder / "tokenizer_config.json").exists():
        return None
    return load_tokenizer(name)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad a batch with: the tokenizer's, or BOS, because padding is masked.

    Raises:
        ValueError: for a tokenizer with neither.
    """
    token = tokenizer.bos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if not isinstance(token, int):
        raise ValueError("the tokenizer has no padding token and no BOS: set tokenizer.bos_token.")
    return token


def check_tokenizer(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, name: str | Path = "") -> None:
    """Refuse a tokenizer that cannot be the model's.

    Args:
        name: the model's name, for the message.

    Raises:
        ValueError: for more tokens than the model has, or another BOS than the model was made with. A tokenizer
            without BOS may belong to any model: some configs name a BOS that their tokenizer does not use.
    """
    where = f"{name}: " if name else ""
    config = config.get_text_config()  # of a model for text and images: its part for text
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{where}the tokenizer has {len(tokenizer):,} tokens and the model {config.vocab_size:,}: it is not the "
            "model's."
        )
    if None not in (config.bos_token_id, tokenizer.bos_token_id) and tokenizer.bos_token_id != config.bos_token_id:
        raise ValueError(
            f"{where}the tokenizer's BOS is {tokenizer.bos_token_id} and the model's {config.bos_token_id}: it is not "
            "the model's tokenizer."
        )


def context_length(config: PreTrainedConfig) -> int | None:
    """n, the most tokens that a model takes, BOS included; None for a model without a limit (Mamba, RWKV, Bloom)."""
    config = config.get_text_config()
    # A config without a limit has neither field; MPT's is the second.
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if not length or length < 0:  # some configs say -1
        return None
    return length - (config.pad_token_id or 0) - 1 if config.model_type in _POSITIONS_BEHIND_PADDING else length


def check_causal(model: PreTrainedModel) -> None:
    """Raise a ValueError for a model whose output at a token depends on later tokens.

    Tested on values: rows that differ only in their last tokens must give the same outputs before those, up to
    rounding. Two kinds are not tested: entropy estimation models (the decoder is causal, the encoder is meant to see
    the text), and models without values (meta).
    """
    config = model.config.get_text_config()
    if config.model_type in ("eem", "eem_autoencoder") or model.device.type == "meta":
        return
    length = min(8, context_length(config) or 8)
    values = config.to_dict()  # not every config names all of these
    given = [values.get(name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")]
    # Chat models have several EOS.
    special = {one for each in given for one in (each if isinstance(each, list) else [each])}
    ids = [index for index in range(min(config.vocab_size, 64)) if index not in special][: length + 2]
    if length < 2 or len(ids) < 3:
        return
    before = [ids[place % len(ids)] for place in range(length - 1)]
    rows_BT = torch.tensor([[*before, last] for last in ids[:3]], device=model.device)
    with whole_weights(model):
        moved = _moved_by_last_tokens(model, rows_BT)
        if moved and model.dtype != torch.float32:  # in a shorter dtype, rounding can hide a leak or look like one
            moved = _moved_by_last_tokens(copy.deepcopy(model).float(), rows_BT)
    if moved > _ROUNDING:
        raise ValueError(
            f"{config.name_or_path or type(model).__name__} sees later tokens: its prediction of a token changes with "
            f"the tokens after it ({config.model_type!r} models need is_decoder or causal in their config, and to "
            "be trained with it)."
        )


def is_moved_by_padding(model: PreTrainedModel) -> bool:
    """Whether padding to the right of a causal model's row moves its text, unless a mask tells: of a right-aligned
    mixer, whose last token has the last row of its matrices."""
    return getattr(model.config, "position_alignment", "left") == "right"


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether a causal model's logits are a Linear without bias of the base model's last hidden state.

    Tested on values, large ones in place of the head's output: scaling or capping may barely change small logits.
    Only a plain head may run in chunks.
    """
    head = model.get_output_embeddings()
    if head is None or not is_plain_linear(head):
        return False
    read, written = [], []

    def replace(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        read.append(inputs[0])
        written.append(torch.linspace(-1e3, 1e3, output.numel(), device=output.device).view_as(output).to(output))
        return written[-1]

    input_ids = torch.arange(2, device=model.device)[None]
    with evaluating(model):
        handle = head.register_forward_hook(replace)
        try:
            logits = model(input_ids=input_ids, labels=input_ids, use_cache=False).logits
        finally:
            handle.remove()
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    return (
        len(read) == 1
        and torch.equal(written[0].float(), logits.float())
        and torch.allclose(read[0], hidden, rtol=1e-4, atol=1e-4)
    )


def whole_weights(model: PreTrainedModel) -> AbstractContextManager:
    """Gathers a model's weights under ZeRO-3, which builds models in shards before DeepSpeed's engine has them."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed  # pyright: ignore[reportMissingImports]  # there where ZeRO-3 is on

    return deepspeed.zero.GatheredParameters(list(model.parameters()))


@contextmanager
def in_mode(model: nn.Module, is_training: bool) -> Iterator[None]:
    """Put a model in training or evaluation mode, and back afterwards."""
    were_training = {module: module.training for module in model.modules()}  # a frozen part may have its own mode
    model.train(is_training)
    try:
        yield
    finally:
        for module, was_training in were_training.items():
            module.training = was_training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model without noise, dropout and gradients, and put it back in its mode afterwards."""
    with in_mode(model, is_training=False), torch.no_grad():
        yield


def _moved_by_last_tokens(model: PreTrainedModel, rows_BT: Tensor) -> float:
    """The largest difference between rows' outputs before their last tokens, as a share of the largest output.

    It runs row by row: with one shape, equal inputs give bit-equal outputs in nearly all models.
    """
    with evaluating(model):
        before_BTX = torch.cat([model(input_ids=row_T[None]).logits[:, :-1].float() for row_T in rows_BT])
    return float((before_BTX - before_BTX[:1]).abs().max() / before_BTX.abs().max().clamp(min=1e-30))


@contextmanager
def reading(name: str | Path, what: str) -> Iterator[None]:
    """`readable`, without what transformers reports on the way."""
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()  # a line for each of its eleven attempts to reach the Hub
    logging.disable_progress_bar()
    try:
        with readable(name, what):
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if has_bars:
            logging.enable_progress_bar()


@contextmanager
def quiet_bitsandbytes() -> Iterator[None]:
    """While this is open, bitsandbytes is imported without its warning that the Hub's kernels are missing.

    It needs none. transformers' trainer imports it if peft is installed.
    """
    logger = getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    logger.setLevel(ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def check_finite(tensors: Iterable[tuple[str, Tensor]], name: str | Path) -> None:
    """ValueError for weights with NaN or infinity, which would come out as values that were not measured."""
    for key, tensor in tensors:
        # 8-bit floats have no `isfinite`, and integers need none.
        is_read = tensor.is_floating_point() and tensor.element_size() > 1 and tensor.device.type != "meta"
        if is_read and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}: the weights {key} hold numbers that are not finite: save or copy it again.")


def _check_unchanged(name: str | Path, *patterns: str) -> None:
    """Hold files of a folder that a training ended in against its list of them; other folders have none."""
    path = Path(name) / COMPLETE_FILE
    if not path.is_file():
        return
    advice = f"copy the folder again, or remove {COMPLETE_FILE} if you changed it yourself"
    try:
        content = json.loads(path.read_text()).items()
        # Version 0.1 listed sizes only, which say nothing of what a file holds.
        listed = {str(file): entry["sha256"] for file, entry in content if not isinstance(entry, int)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {advice}.") from error
    for file, digest in listed.items():
        if "/" not in file and any(fnmatch(file, pattern) for pattern in patterns):
            if not (path.parent / file).is_file():
                raise ValueError(f"{path.parent / file} is missing: {advice}.")
            if sha256(path.parent / file) != digest:
                raise ValueError(f"{path.parent / file} is not as training wrote it: {advice}.")


def _check_sizes(name: str | Path, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _check_sizes(name, value)
        elif isinstance(value, int) and abs(value) >= _LARGEST_SIZE:
            raise ValueError(f"{name}: {key} is {value:.3g} in config.json: no model is so large.")


def _check_files(folder: Path, config: PreTrainedConfig) -> None:
    """Check that the weights' files are all there, and hold at least one tensor a layer."""
    if not folder.is_dir():
        return
    _check_unchanged(folder, "*.safetensors", "pytorch_model*.bin", "*.index.json")
    for index in folder.glob("*.index.json"):
        with reading(index, "list of weights"):
            files = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(file for file in files if not (folder / file).is_file()):
            raise ValueError(f"{folder} lacks some weights: {missing[0]} of {index.name} is missing.")
    tensors = 0
    safetensors = sorted(folder.glob("*.safetensors"))
    for file in safetensors:
        with reading(file, "weights"), safe_open(file, framework="pt") as weights:
            tensors += len(weights.keys())
    if not safetensors and not any(folder.glob("*.bin")):
        raise ValueError(f"{folder} holds no weights: no file *.safetensors or *.bin.")
    for key, layers in _layer_counts(config.to_dict()):
        if safetensors and layers > tensors:
            raise ValueError(f"{folder}: {key} is {layers:,} in config.json, but the weights are {tensors:,} tensors.")


def _layer_counts(values: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _layer_counts(value)
        elif isinstance(value, int) and key in _LAYER_COUNTS:
            yield key, value


def _check_weights(
    name: str | Path, model: PreTrainedModel, found: dict[str, Any], kind: ModelKind, new_head: bool
) -> None:
    missing, extra, mismatched = (sorted(found[f"{what}_keys"]) for what in ("missing", "unexpected", "mismatched"))
    if new_head:
        base = f"{model.base_model_prefix}."
        missing, extra = ([key for key in keys if key.startswith(base)] for keys in (missing, extra))
        mismatched = [entry for entry in mismatched if entry[0].startswith(base)]
    if mismatched:
        key, in_file, in_model = mismatched[0]
        raise ValueError(
            f"{name}: {key} is {list(in_file)} in the weights and {list(in_model)} by config.json: one of them is "
            "another model's."
        )
    if missing:
        raise ValueError(f"{name} lacks the weights {_some(missing)}: it was not trained as a {_NAMES[kind]}.")
    if extra:
        raise ValueError(f"{name} holds weights that no {_NAMES[kind]} of its config has: {_some(extra)}.")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
