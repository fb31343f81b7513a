"""Adapts lm-eval's `hf` model to score this project's models fairly, and registers `eem` with lm-eval.

Both cut texts that are too long for the context on the left, as lm-eval does, and count them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from accelerate import PartialState
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor

from modeling_eem.loading import is_moved_by_padding

# lm-eval's request: (context, continuation) as text, or None in a rolling likelihood; then both as ids.
Request: TypeAlias = tuple[tuple[str, str] | None, list[int], list[int]]
LogLikelihood: TypeAlias = tuple[float, bool]

EEM_TYPES = ("eem", "eem_autoencoder")
_DEFAULT_GENERATED_TOKENS = 256  # lm-eval's own


# lm-eval's `register_model` has no types: a type checker would take the registered class for the base `LM`.
_HFLM: Any = HFLM


class CausalHarnessModel(_HFLM):
    """lm-eval's `hf` model for models whose rows begin with BOS, once.

    * The rolling likelihood (`wikitext`) encodes text without special tokens: lm-eval itself puts BOS before it, and
      with a tokenizer that adds BOS the model would score a second one.
    * A generation never asks for more than half the context. IFEval wants 1,280 tokens, and stock lm-eval stops with
      an AssertionError if the context is not longer than that.
    * Processes without a GPU share the work too.
    * Log-probabilities are float32, whatever the dtype of the weights.

    Attributes:
        truncated: prompts that lost their beginning since `start`.
        shortened: prompts since `start` that got less room for an answer than the task asks for.

    Raises:
        ValueError: for a model whose encoder would see what is scored, or a continuation longer than the context.
    """

    def __init__(self, pretrained: str, advance: Callable[[int], None] | None = None, **kwargs: Any) -> None:
        """`advance` is called after each batch with its number of rows; everything else is as in `HFLM`."""
        if str(kwargs.get("batch_size", 1)).startswith("auto"):
            raise ValueError("batch_size: auto is not for these models: name a number of rows.")
        kwargs.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
        # lm-eval adds up log-probabilities in the dtype of the logits: half precision would round every score.
        kwargs.setdefault("softmax_dtype", "float32")
        # Made before lm-eval's own, because the first one decides. Without `cpu` two processes would be two runs.
        state = PartialState(cpu=not torch.accelerator.is_available())
        super().__init__(pretrained, **kwargs)
        if is_moved_by_padding(self.model):  # lm-eval pads rows and gives no mask
            self.batch_size_per_gpu = 1
        self._rank, self._world_size = state.process_index, state.num_processes
        self.advance = advance or (lambda num_rows: None)
        self.is_rolling = False
        self.start()

    def start(self) -> None:
        """Start counting from zero."""
        self.truncated: set[str] = set()
        self.shortened: set[str] = set()

    def _get_config(self, *args: Any, **kwargs: Any) -> None:
        super()._get_config(*args, **kwargs)
        self._check_type(self._config.model_type)

    def _check_type(self, model_type: str) -> None:
        if model_type in EEM_TYPES:
            raise ValueError(f"the encoder of {model_type!r} would see what is scored: use the model 'eem'.")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return super().tok_encode(string, False if self.is_rolling else add_special_tokens, **kwargs)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[LogLikelihood]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        self.is_rolling = True
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        finally:
            self.is_rolling = False

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        fitted = []
        for request in requests:
            prompt, given = request.arguments
            # Tasks may also call the length of an answer `max_new_tokens` or `max_tokens`.
            options: dict[str, Any] = {**normalize_gen_kwargs(given, _DEFAULT_GENERATED_TOKENS)}
            wanted = options["max_gen_toks"]
            room = min(wanted, self.max_length // 2)
            if room < wanted:
                self.shortened.add(prompt)
            if len(self.tok_encode(prompt)) > self.max_length - room:
                self.truncated.add(prompt)
            fitted.append(replace(request, arguments=(prompt, {**options, "max_gen_toks": room})))
        return super().generate_until(fitted, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[LogLikelihood]:
        # lm-eval's rolling likelihood would show a progress bar for every batch.
        self._check_lengths(requests)
        return _finite(super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs))

    def _check_lengths(self, requests: Sequence[Request]) -> None:
        for texts, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise ValueError(too_long(len(continuation), self.max_length))
            if texts is not None and len(context) + len(continuation) > self.max_length + 1:
                self.truncated.add(texts[0])

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.advance(len(inps))
        return super()._model_call(inps, *args, **kwargs)

    def _model_generate(self, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.advance(len(context))
        return super()._model_generate(context, *args, **kwargs)


def too_long(num_tokens: int, context: int) -> str:
    """What to say of a continuation that is longer than the context."""
    return f"a continuation of {num_tokens} tokens does not fit a context of {context}: leave this task out."


def _finite(answers: list[LogLikelihood]) -> list[LogLikelihood]:
    """The answers, if all are finite. lm-eval 0.4.13 takes NaN for the first choice, and prints a normal accuracy.

    Raises:
        ValueError: for a log-likelihood that is NaN or infinite.
    """
    for log_likelihood, _ in answers:
        if not math.isfinite(log_likelihood):
            raise ValueError(
                f"the model scored a continuation with {log_likelihood}: its weights or its dtype overflow; use "
                "--dtype float32, or train it again."
            )
    return answers


class EEMHarnessModel(CausalHarnessModel):
    """An entropy estimation model that is scored as a language model.

    Its encoder sees only the context, never what is scored; rolling likelihoods have no context, so it sees only BOS.
    The decoder reads context and continuation with that code, as in training. Generation encodes the prompt once. For
    lm-eval's own command: `lm_eval --model eem` after `import modeling_eem.evaluation.harness`.

    Raises:
        ValueError: for another kind of model.
    """

    def _check_type(self, model_type: str) -> None:
        if model_type != "eem":
            raise ValueError(f"the model 'eem' is for entropy estimation models, not for {model_type!r}.")

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[LogLikelihood]:
        self._check_lengths(requests)
        longest_first = sorted(
            range(len(requests)), key=lambda index: -len(requests[index][1]) - len(requests[index][2])
        )
        answers: dict[int, LogLikelihood] = {}
        size = override_bs or self.batch_size
        for start in range(0, len(requests), size):
            indices = longest_first[start : start + size]
            answers.update(zip(indices, self._score([requests[index] for index in indices])))
        return _finite([answers[index] for index in range(len(requests))])

    @torch.no_grad()
    def _score(self, requests: Sequence[Request]) -> list[LogLikelihood]:
        """Σ log p(continuation | context, code of the context) in nats, and whether it is the greedy continuation."""
        self.advance(len(requests))
        texts = [(context + continuation)[-(self.max_length + 1) :] for _, context, continuation in requests]
        shown = [
            [self.prefix_token_id] if words is None else text[: len(text) - len(continuation)]
            for text, (words, _, continuation) in zip(texts, requests)
        ]
        code = self.model.encode(*self._right_padded(shown))
        input_ids, attention_mask = self._right_padded([text[:-1] for text in texts])
        logits_BTV = self.model(input_ids=input_ids, attention_mask=attention_mask, code=code, use_cache=False).logits
        answers = []
        for logits_TV, text, (_, _, continuation) in zip(logits_BTV, texts, requests):
            targets = torch.tensor(continuation, device=logits_TV.device)
            end = len(text) - 1
            log_probs = logits_TV[end - len(targets) : end].double().log_softmax(-1)
            is_greedy = bool((log_probs.argmax(-1) == targets).all())
            answers.append((log_probs.gather(-1, targets[:, None]).sum().item(), is_greedy))
        return answers

    def _right_padded(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask, `[B, T]` each."""
        width = max(map(len, rows))
        padding = [width - len(row) for row in rows]
        ids = torch.tensor([row + [self.tokenizer.pad_token_id] * gap for row, gap in zip(rows, padding)])
        mask = torch.tensor([[1] * len(row) + [0] * gap for row, gap in zip(rows, padding)])
        return ids.to(self.device), mask.to(self.device)


register_model("eem")(EEMHarnessModel)
