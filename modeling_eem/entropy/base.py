"""The base of all estimators: how they are called, and what they refuse."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_eem.entropy.result import NATS, TokenEntropies
from modeling_eem.entropy.texts import Rows, TextRows, real_tokens, rows_of_ids, rows_of_texts
from modeling_eem.kernels.cpu_linear import FEW_ROWS
from modeling_eem.loading import ModelKind, check_tokenizer, context_length, evaluating
from modeling_eem.models.modeling_eem import EEMForCausalLM


@dataclass(frozen=True)
class Option:
    """An argument of an estimator beside its models, as the command line offers it.

    Attributes:
        type: "int" or "str".
        help: what it does, for users.
        choices: the values that it takes, if not all of its type.
        default: its value if it is not given; None if that depends on the model.
    """

    name: str
    type: str
    help: str
    choices: tuple[str, ...] = ()
    default: int | str | None = None


class EntropyEstimator(ABC):
    """One value for each token of a text, from a model.

    Call it with texts and the model's tokenizer, or with rows of ids: BOS first, padded on either side or not at all.
    How rows are batched or padded changes no value by more than rounding.

    Args:
        model: stays in its mode and on its device.
        batch_tokens: the most tokens of one forward pass; it changes memory, not values.
    """

    method: ClassVar[str]
    model_kind: ClassVar[ModelKind] = "causal"
    num_models: ClassVar[int] = 1
    reads_own_tokens: ClassVar[bool] = True  # the model's tokens are those of the rows
    options: ClassVar[tuple[Option, ...]] = ()
    unit: str = NATS

    def __init__(self, model: PreTrainedModel, batch_tokens: int = 4096):
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, not {batch_tokens}.")
        self.model = model
        self.batch_tokens = batch_tokens

    def __call__(
        self,
        texts: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> TokenEntropies:
        """Measure texts, or rows of ids `[B, T]`; a tokenizer beside ids adds their bytes to the result.

        Raises:
            ValueError: for neither or both of texts and ids, texts without a tokenizer, a tokenizer that is not the
                model's, an empty text, a row without a token to score, ids outside the vocabulary, a row that does not
                begin with the model's BOS, a row longer than the method or the model can take, or a value that is not
                finite.
        """
        if (texts is None) == (input_ids is None):
            raise ValueError("give texts with a tokenizer, or input_ids: one of the two.")
        if tokenizer is not None:
            self.check_tokenizer(tokenizer)
        if texts is not None:
            rows, layout = self.rows_of_texts(texts, tokenizer), None
        else:
            assert input_ids is not None  # one of the two
            ids, mask_BT = real_tokens(input_ids, attention_mask)
            rows, layout = self.rows_of_ids(ids, tokenizer), (input_ids.cpu(), mask_BT)
        for number, ids_T in enumerate(rows.ids):
            self.check_row(ids_T, number)
        return self._result(rows, self.measure(rows), layout)

    def measure(self, rows: Rows, names: Sequence[int | str] | None = None) -> list[Tensor]:
        """`score` of rows that `check_row` has passed, float64 on the CPU.

        Args:
            names: how errors name each row; by default by its place.

        Raises:
            ValueError: for a value that is not finite, from damaged weights or float16 outputs that overflow. NaN
                means "not scored" and must not hide it.
        """
        ids = [ids_T.to(self.model.device) for ids_T in rows.ids]
        if sum(map(len, ids)) <= FEW_ROWS:
            # The last bits of a product of few rows depend on the weights' address, which differs between processes.
            ids = ids * (FEW_ROWS + 1)
        with evaluating(self.model):
            values = self.score(ids)[: len(rows)]
        values = [values_T.to("cpu", torch.float64) for values_T in values]
        for name, values_T in zip(range(len(rows)) if names is None else names, values):
            self.check_values(values_T, name)
        return values

    @abstractmethod
    def score(self, rows: list[Tensor]) -> list[Tensor]:
        """One value a token for checked rows of ids `[t]`, in `unit`; NaN where a token is not scored.

        An estimator with several values a token returns `[t, columns]`, the first in `unit`.
        """

    @property
    def context(self) -> int | None:
        """The model's context, counted in tokens of the rows; None for a model without a limit."""
        return context_length(self.model.config)

    @property
    def max_length(self) -> int | None:
        """The most tokens of a row, BOS included; None for a method that slides, or a model without a limit."""
        return self.context

    def rows_of_texts(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> TextRows:
        """Texts as rows of the model's tokens."""
        if tokenizer is None:
            raise ValueError("texts need the model's tokenizer: pass tokenizer=.")
        return rows_of_texts(texts, tokenizer)

    def rows_of_ids(self, ids: Sequence[Tensor], tokenizer: PreTrainedTokenizerBase | None = None) -> Rows:
        """Rows of ids `[t]`, with their bytes if there is a tokenizer."""
        return Rows(list(ids)) if tokenizer is None else rows_of_ids(ids, tokenizer)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise a ValueError for a tokenizer that did not make the rows."""
        check_tokenizer(self.model.config, tokenizer)

    def check_row(self, ids_T: Tensor, number: int | str) -> None:
        """Raise a ValueError for a row that cannot be measured."""
        vocab_size = self.model.config.get_text_config().vocab_size
        if len(ids_T) < 2:
            raise ValueError(f"row {number} holds no token to score after its first: leave it out.")
        lowest, highest = ids_T.min().item(), ids_T.max().item()
        if lowest < 0 or highest >= vocab_size:
            raise ValueError(
                f"row {number} holds id {lowest if lowest < 0 else highest}, outside the vocabulary of {vocab_size}: "
                "is this the model's tokenizer?"
            )
        if self.max_length is not None and len(ids_T) > self.max_length:
            raise ValueError(
                f"row {number} has {len(ids_T)} tokens, more than the model's {self.max_length}: cut it into windows, "
                "or use a method that slides (sliding, causal with a stride)."
            )

    def check_values(self, values_T: Tensor, number: int | str) -> None:
        """Raise a ValueError for a row with a value that is not finite, except at its first token."""
        is_bad_T = ~values_T.reshape(len(values_T), -1)[1:, 0].isfinite()
        if is_bad_T.any():
            place = 1 + int(is_bad_T.int().argmax())
            value = values_T.reshape(len(values_T), -1)[place, 0].item()
            raise ValueError(
                f"row {number}, token {place}: the model gives {value}, not an entropy: its weights are damaged, "
                f"or {str(self.model.dtype).removeprefix('torch.')} is too narrow for it (try float32)."
            )

    def _result(self, rows: Rows, values: list[Tensor], layout: tuple[Tensor, Tensor] | None) -> TokenEntropies:
        return TokenEntropies.of_rows(rows, values, method=self.method, unit=self.unit, layout=layout)


class EEMEstimator(EntropyEstimator):
    """Estimators that use an entropy estimation model's memory, on rows that begin with BOS.

    Raises:
        ValueError: for a model that is not an entropy estimation model.
    """

    model: EEMForCausalLM

    def __init__(self, model: EEMForCausalLM, batch_tokens: int = 4096):
        if model.config.model_type != "eem":
            raise ValueError(
                f"{type(self).__name__} needs an entropy estimation model (EEMForCausalLM), not a "
                f"{model.config.model_type!r} model, which has no memory: a causal model's entropies are its own "
                "cross-entropies, so use CausalEntropy."
            )
        super().__init__(model, batch_tokens)

    def check_row(self, ids_T: Tensor, number: int | str) -> None:
        super().check_row(ids_T, number)
        check_bos(self.model, ids_T, number)


def check_bos(model: PreTrainedModel, ids_T: Tensor, number: int | str) -> None:
    """Raise a ValueError unless a row begins with BOS: its first text token must be predicted like the others."""
    bos = model.config.get_text_config().bos_token_id
    if bos is not None and ids_T[0] != bos:
        raise ValueError(f"row {number} begins with id {ids_T[0].item()}, not with BOS ({bos}): put BOS before it.")


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of about equal lengths: `count * longest <= batch_tokens`, or a single index."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def pad_right(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows `[t]` as `[B, T]` and their mask; padding on the right changes nothing for a causal model."""
    padded_BT = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths_B = torch.tensor([len(row) for row in rows], device=padded_BT.device)
    return padded_BT, (torch.arange(padded_BT.shape[1], device=padded_BT.device) < lengths_B[:, None]).long()
