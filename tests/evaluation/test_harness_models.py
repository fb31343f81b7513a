"""Models as lm-eval sees them, against the definition row by row, and against lm-eval's own `hf` model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from modeling_eem.data import CausalCollator, RowFormat, encode_text, windows
from modeling_eem.evaluation import held_out_code_length
from modeling_eem.evaluation.harness_models import CausalHarnessModel, EEMHarnessModel
from modeling_eem.models import modeling_eem

CONTEXT = 16
ADAPTERS = {"masked_mixer": CausalHarnessModel, "llama": CausalHarnessModel, "eem": EEMHarnessModel}
KINDS = list(ADAPTERS)
PAIRS = [("The sea was", " calm"), ("", "A ship"), ("A ship came home", " at last, and no"), ("The wind ", "was gone")]
PAIRS += [("no one on it spoke a word of rain.", " rain"), ("at", " last"), ("The sea", " came"), ("at", " home at")]
TEXTS = ["The sea was calm.", "A ship came home at last, and no one on it spoke a word of rain. The wind was gone."]


def _requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, argument, 0, ("task", number, 1)) for number, argument in enumerate(arguments)]


@torch.no_grad()
def _naive(model: PreTrainedModel, context: list[int], continuation: list[int], shown: list[int]) -> float:
    """Σ log p(continuation | context) in nats, of one unpadded row; an EEM's encoder is shown `shown`."""
    memory = {"code": model.encode(torch.tensor([shown]))} if model.config.model_type == "eem" else {}
    log_probs = model(torch.tensor([(context + continuation)[:-1]]), **memory).logits[0].double().log_softmax(-1)
    return sum(log_probs[len(context) - 1 + at, token].item() for at, token in enumerate(continuation))


@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_are_the_definition(kind: str, harness_model: Callable[..., Path]) -> None:
    model = ADAPTERS[kind](str(harness_model(kind)), batch_size=3)
    for (context, continuation), (value, _) in zip(PAIRS, model.loglikelihood(_requests("loglikelihood", PAIRS))):
        before = model.tokenizer.encode(context.rstrip())  # lm-eval gives a context's last spaces to what follows
        after = model.tokenizer.encode(context + continuation)[len(before) :]
        assert before[0] == model.tokenizer.bos_token_id
        text = (before + after)[-(CONTEXT + 1) :]
        before = text[: len(text) - len(after)]
        assert value == pytest.approx(_naive(model.model, before, after, shown=before), abs=1e-4)
        if kind == "eem":
            assert value != pytest.approx(_naive(model.model, before, after, shown=text[:CONTEXT]), abs=1e-3)


@pytest.mark.parametrize("kind", ["masked_mixer", "llama"])
def test_a_likelihood_is_not_rounded_to_the_dtype_of_the_weights(
    kind: str, harness_model: Callable[..., Path]
) -> None:
    model = CausalHarnessModel(str(harness_model(kind)), dtype="bfloat16")
    assert model.model.dtype == torch.bfloat16
    values = model.loglikelihood(_requests("loglikelihood", PAIRS[:4]))
    for (context, continuation), (value, _) in zip(PAIRS, values):
        before = model.tokenizer.encode(context.rstrip())
        after = model.tokenizer.encode(context + continuation)[len(before) :]
        assert value == pytest.approx(_naive(model.model, before, after, shown=before), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_rolling_likelihoods_score_every_token_once_and_bos_never(
    kind: str, harness_model: Callable[..., Path]
) -> None:
    model = ADAPTERS[kind](str(harness_model(kind)), batch_size=3)
    rolled = model.loglikelihood_rolling(_requests("loglikelihood_rolling", [(text,) for text in TEXTS]))
    for text, value in zip(TEXTS, rolled):
        bos = [model.tokenizer.bos_token_id]
        ids, expected = bos + encode_text(model.tokenizer, text), 0.0
        for start in range(1, len(ids), CONTEXT):
            end = min(start + CONTEXT, len(ids))
            # lm-eval fills the last window's context with text that is scored already.
            context = ids[max(0, end - 1 - CONTEXT) : start]
            expected += _naive(model.model, context, ids[start:end], shown=bos)
        assert value == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["masked_mixer", "llama"])
def test_rolling_likelihoods_are_held_out_code_lengths(kind: str, harness_model: Callable[..., Path]) -> None:
    """A text that fits the context with its BOS is one window, and both score the same tokens; so does lm-eval's own
    model without the tokenizer's BOS. With it, BOS would predict a second BOS."""
    model = CausalHarnessModel(str(harness_model(kind)))
    row_format = RowFormat.from_tokenizer(model.tokenizer, CONTEXT)
    rows = list(windows([(0, encode_text(model.tokenizer, TEXTS[0]))], row_format))
    collator = CausalCollator(model.tokenizer.pad_token_id, len(model.tokenizer), CONTEXT)
    assert len(rows) == 1
    (value,) = model.loglikelihood_rolling(_requests("loglikelihood_rolling", [(TEXTS[0],)]))
    assert -value == pytest.approx(held_out_code_length(model.model, rows, collator).nll_nats, rel=1e-6)
    for add_bos_token, is_equal in ((False, True), (True, False)):
        stock = HFLM(str(harness_model(kind)), device="cpu", add_bos_token=add_bos_token)
        (own,) = stock.loglikelihood_rolling(_requests("loglikelihood_rolling", [(TEXTS[0],)]), disable_tqdm=True)
        assert (own == pytest.approx(value, rel=1e-6)) == is_equal


def test_a_right_aligned_mixer_is_scored_row_by_row(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    """lm-eval pads on the right and gives no mask: padding would take the places of the text's last tokens."""
    folder = Path(shutil.copytree(harness_model("masked_mixer"), tmp_path / "right"))
    config = json.loads((folder / "config.json").read_text()) | {"position_alignment": "right"}
    (folder / "config.json").write_text(json.dumps(config))
    one, eight = (
        [
            value
            for value, _ in CausalHarnessModel(str(folder), batch_size=size).loglikelihood(
                _requests("loglikelihood", PAIRS)
            )
        ]
        for size in (1, 8)
    )
    assert eight == pytest.approx(one, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_change_nothing(kind: str, harness_model: Callable[..., Path]) -> None:
    answers = []
    for batch_size in (1, 8):
        model = ADAPTERS[kind](str(harness_model(kind)), batch_size=batch_size)
        prompts = [(context or "A", {"until": ["\n\n"], "max_gen_toks": 6}) for context, _ in PAIRS]
        answers.append(
            {
                "nats": [value for value, _ in model.loglikelihood(_requests("loglikelihood", PAIRS))]
                + model.loglikelihood_rolling(_requests("loglikelihood_rolling", [(text,) for text in TEXTS])),
                "greedy": [greedy for _, greedy in model.loglikelihood(_requests("loglikelihood", PAIRS))],
                "texts": model.generate_until(_requests("generate_until", prompts)),
            }
        )
    one, eight = answers
    assert one["nats"] == pytest.approx(eight["nats"], abs=1e-4)
    assert one["greedy"] == eight["greedy"] and one["texts"] == eight["texts"]
    assert len(set(one["texts"])) > 1, "the prompts must matter"


@pytest.mark.parametrize("kind", KINDS)
def test_a_generation_is_the_models_own(kind: str, harness_model: Callable[..., Path]) -> None:
    model = ADAPTERS[kind](str(harness_model(kind)))
    (text,) = model.generate_until(_requests("generate_until", [("The sea", {"until": [], "max_gen_toks": 6})]))
    prompt = model.tokenizer("The sea", return_tensors="pt")
    own = model.model.generate(**prompt, max_new_tokens=6, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert text == model.tokenizer.decode(own, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_the_length_of_an_answer_has_several_names(name: str, harness_model: Callable[..., Path]) -> None:
    """Other names than lm-eval's own were overridden by its default."""
    model = CausalHarnessModel(str(harness_model("llama")))
    wanted = ({"until": [], given: 3} for given in ("max_gen_toks", name))
    expected, text = (model.generate_until(_requests("generate_until", [("A", options)])) for options in wanted)
    assert text == expected and not model.shortened


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_context_cuts_is_counted(kind: str, harness_model: Callable[..., Path]) -> None:
    model = ADAPTERS[kind](str(harness_model(kind)))
    model.loglikelihood(_requests("loglikelihood", [*PAIRS[:1], (TEXTS[1], " rain"), (TEXTS[1], " wind")]))
    assert model.truncated == {TEXTS[1]} and not model.shortened
    model.start()
    long_answer = {"until": [], "max_gen_toks": 1280}
    model.generate_until(_requests("generate_until", [("A", long_answer), (TEXTS[1], long_answer)]))
    assert model.truncated == {TEXTS[1]} and model.shortened == {"A", TEXTS[1]}
    with pytest.raises(ValueError, match="does not fit a context of 16"):
        model.loglikelihood(_requests("loglikelihood", [("A", TEXTS[1])]))


def test_an_encoder_never_sees_what_is_scored(
    harness_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`eem` shows it the context; the causal adapter refuses EEMs; lm-eval's own model makes the model warn."""
    folder = str(harness_model("eem"))
    assert get_model("eem") is EEMHarnessModel
    with pytest.raises(ValueError, match="would see what is scored"):
        CausalHarnessModel(folder)
    with pytest.raises(ValueError, match="not for 'llama'"):
        EEMHarnessModel(str(harness_model("llama")))
    with pytest.raises(ValueError, match="batch_size: auto is not for these models"):
        EEMHarnessModel(folder, batch_size="auto:4")
    warnings: list[str] = []
    monkeypatch.setattr(modeling_eem.logger, "warning_once", warnings.append)
    EEMHarnessModel(folder).loglikelihood(_requests("loglikelihood", PAIRS))
    assert not warnings
    HFLM(folder, device="cpu").loglikelihood(_requests("loglikelihood", PAIRS), disable_tqdm=True)
    assert "the very tokens the logits predict" in warnings[0]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_that_are_not_finite_are_refused(kind: str, harness_model: Callable[..., Path]) -> None:
    """lm-eval 0.4.13 counts NaN as the first choice: a broken model would have an accuracy."""
    model = ADAPTERS[kind](str(harness_model(kind)), batch_size=3)
    torch.nn.init.constant_(model.model.get_output_embeddings().weight, float("nan"))
    with pytest.raises(ValueError, match="scored a continuation with nan"):
        model.loglikelihood(_requests("loglikelihood", PAIRS))
    with pytest.raises(ValueError, match="scored a continuation with nan"):
        model.loglikelihood_rolling(_requests("loglikelihood_rolling", [(text,) for text in TEXTS]))
