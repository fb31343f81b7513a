"""Second-order entropies: one number a token from a model that was fitted to another estimator's entropies.

One pass instead of one a prefix. Source: Badger & Neligeorge 2025.
"""

from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modeling_eem.entropy.base import EntropyEstimator, Option, check_bos, length_batches, pad_right
from modeling_eem.loading import ModelKind, check_causal

ALIGNMENTS = ("prefix", "token")


class RegressionEntropy(EntropyEstimator):
    """A token classifier's single number a token, in the nats it was fitted to.

    With alignment "prefix" the value of token j is the output at j - 1, which has not seen token j; with "token" it is
    the output at j.

    Args:
        model: any model for token classification with `num_labels=1`, this project's mixers or transformers'.
        alignment: the one that the model was trained with; by default its config's `regression_alignment`, which
            `TokenWeightedTrainer` writes.

    Raises:
        ValueError: for another kind of model, one that sees later tokens, an alignment that contradicts the config, or
            no alignment at all.
    """

    method: ClassVar[str] = "regression"
    model_kind: ClassVar[ModelKind] = "token_classifier"
    options: ClassVar[tuple[Option, ...]] = (
        Option("alignment", "str", "The one the model was trained with; by default its config's.", ALIGNMENTS),
    )

    def __init__(self, model: PreTrainedModel, alignment: str | None = None, batch_tokens: int = 4096):
        super().__init__(model, batch_tokens)
        if "ForTokenClassification" not in type(model).__name__ or model.config.num_labels != 1:
            raise ValueError(
                f"RegressionEntropy needs a model for token classification with num_labels=1, not "
                f"{type(model).__name__} with num_labels={model.config.num_labels}: train one on token_entropies."
            )
        check_causal(model)
        self.alignment = _alignment(model.config.to_dict().get("regression_alignment"), alignment)

    def check_row(self, ids_T: Tensor, number: int | str) -> None:
        super().check_row(ids_T, number)
        check_bos(self.model, ids_T, number)

    def score(self, rows: list[Tensor]) -> list[Tensor]:
        values = [torch.full((len(row),), float("nan"), dtype=torch.float64) for row in rows]
        for batch in length_batches([len(row) for row in rows], self.batch_tokens):
            ids_BT, mask_BT = pad_right([rows[index] for index in batch])
            scores_BT = self.model(input_ids=ids_BT, attention_mask=mask_BT).logits.squeeze(-1).double().cpu()
            for index, scores_T in zip(batch, scores_BT):
                first = 0 if self.alignment == "prefix" else 1
                values[index][1:] = scores_T[first : first + len(rows[index]) - 1]
        return values


def _alignment(trained: str | None, asked: str | None) -> str:
    if asked is not None and asked not in ALIGNMENTS:
        raise ValueError(f"alignment must be one of {', '.join(ALIGNMENTS)}, not {asked!r}.")
    if trained is not None:
        if asked not in (None, trained):
            raise ValueError(f"the model was trained with alignment={trained!r}, not {asked!r}: leave alignment out.")
        return trained
    if asked is None:
        raise ValueError(
            "the model's config has no regression_alignment: pass alignment='prefix' or 'token', as it was trained."
        )
    return asked
