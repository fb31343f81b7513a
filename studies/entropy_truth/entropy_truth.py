"""How near does each estimator come to entropies that are known?

python studies/entropy_truth/entropy_truth.py --output runs/entropy-truth

On sources whose conditional probabilities are known, small mixers and small Llamas are trained: entropy estimation
models, one of them with a code large enough to say most of a row, a causal model, a teacher with a tokenizer of its
own, and regressions on the exact values. No row is seen twice. Each estimator's values on held-out rows are compared
with two truths, in bits: the surprisal `-log2 p(x_j | x_<j)` of the token that came, and the conditional entropy
`H(X_j | x_<j)` of the one that was to come. Cells (a source, a backbone, a seed of rows and models) are files of
OUTPUT, and the same command goes on where a kill left off.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from datasets import Dataset
from entropy_truth_models import BACKBONES, Schedule, Shape, causal_model, eem_model, regression_model, train
from entropy_truth_report import Score, compare, write_record
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eem.console import Command, one_line_errors
from modeling_eem.data import (
    CopySource,
    HiddenMarkovSource,
    MarkovSource,
    ParitySource,
    Source,
    encode_text,
    train_tokenizer,
)
from modeling_eem.entropy import (
    CausalEntropy,
    ExactEntropy,
    GradientInputEntropy,
    OcclusionEntropy,
    RegressionEntropy,
    SlidingEntropy,
    TeacherEntropy,
    TokenEntropies,
    TwoModelEntropy,
)
from modeling_eem.entropy.occlusion import METRICS
from modeling_eem.files import write_atomically

SYMBOLS, BOS, FIRST_SYMBOL = 16, 0, 2
LETTERS = "abcdefghijklmnop"  # symbols as text, for the teacher


@dataclass(frozen=True)
class Settings:
    """The numbers of the experiment.

    Attributes:
        length: symbols of a row.
        long_length: symbols of the rows that only a sliding window can take.
        regression_rows: training rows whose exact values the regressions are fitted to.
        teacher_merges: pairs that the teacher's tokenizer makes one token.
        large_code: numbers of the large code.
    """

    length: int = 32
    long_length: int = 48
    training_rows: int = 30_720
    held_out_rows: int = 64
    regression_rows: int = 256
    teacher_merges: int = 64
    large_code: int = 64
    stride: int = 8
    shape: Shape = Shape(width=32, layers=2, heads=4, code_size=4)
    schedule: Schedule = Schedule(snapshots=(60, 240, 960), batch_size=32, learning_rate=5e-3)
    regression_schedule: Schedule = Schedule(snapshots=(240,), batch_size=32, learning_rate=5e-3)

    @property
    def vocab_size(self) -> int:
        return FIRST_SYMBOL + SYMBOLS

    def sources(self) -> dict[str, Callable[[], Source]]:
        return {
            "markov-2": partial(MarkovSource.random, SYMBOLS, order=2, concentration=0.2, seed=0),
            "copy": partial(CopySource, SYMBOLS, half_length=self.length // 2, noise=0.2),
            "hidden-markov": partial(HiddenMarkovSource.random, SYMBOLS, num_states=8, concentration=0.15, seed=0),
            "parity": partial(ParitySource, vocab_size=4, block_length=3),
            "markov-1": partial(MarkovSource.random, SYMBOLS, order=1, concentration=0.2, seed=0),
            "iid": partial(MarkovSource.random, SYMBOLS, order=0, concentration=0.5, seed=0),
        }


app = typer.Typer(add_completion=False)


class Cell:
    """All models of one backbone on one source, and what their estimators score."""

    def __init__(self, settings: Settings, source: Source, backbone: str, seed: int = 0):
        self.settings, self.source, self.backbone, self.seed = settings, source, backbone, seed
        generator = torch.Generator().manual_seed(seed)
        self.train_RT = source.sample(settings.training_rows, settings.length, generator)
        self.held_out_RT = source.sample(settings.held_out_rows, settings.length, generator)
        # The rows of some sources have an end, and nothing comes after it.
        self.long_RT = None
        if not isinstance(source, CopySource):
            self.long_RT = source.sample(settings.held_out_rows, settings.long_length, generator)

    def scores(self) -> list[Score]:
        """Of every estimator after every snapshot, and of the truths themselves."""
        found = list(self._truths())
        found += [
            score
            for name, step, result in self._teacher()
            for score in self._score(name, step, result, self.held_out_RT)
        ]
        found += [
            score
            for step, model in self._train(causal_model, self.train_RT).items()
            for score in self._score("causal", step, self._measure(CausalEntropy(model)), self.held_out_RT)
        ]
        shorter = self._train(eem_model, self.train_RT[:, :-1])
        longer = self._train(eem_model, self.train_RT)
        for step, model in longer.items():
            for name, result in self._measure_eem(model, shorter[step]):
                found += self._score(name, step, result, self.held_out_RT)
            if self.long_RT is not None:
                result = SlidingEntropy(model, self.settings.stride)(input_ids=with_bos(self.long_RT))
                result.values[:, : self.settings.length + 1] = float("nan")  # these are the exact estimator's
                found += self._score("sliding", step, result, self.long_RT)
        for step, model in self._train(eem_model, self.train_RT, code_size=self.settings.large_code).items():
            for name, estimator in (
                ("exact", ExactEntropy(model)),
                ("occlusion, loss", OcclusionEntropy(model, "loss")),
            ):
                found += self._score(f"{name}, large code", step, self._measure(estimator), self.held_out_RT)
        for name, result in self._regressions(longer[self.settings.schedule.snapshots[-1]]):
            found += self._score(name, self.settings.schedule.snapshots[-1], result, self.held_out_RT)
        return found

    def _measure(self, estimator: Callable[..., TokenEntropies]) -> TokenEntropies:
        return estimator(input_ids=with_bos(self.held_out_RT))

    def _measure_eem(self, model: PreTrainedModel, shorter: PreTrainedModel) -> Iterator[tuple[str, TokenEntropies]]:
        yield "exact", self._measure(ExactEntropy(model))
        yield "two models", self._measure(TwoModelEntropy(model, shorter))
        for metric in METRICS:
            yield f"occlusion, {metric}", self._measure(OcclusionEntropy(model, metric))
        yield "gradient × input", self._measure(GradientInputEntropy(model))

    def _train(
        self, make: Callable[..., PreTrainedModel], symbols_RT: Tensor, **shape: int
    ) -> dict[int, PreTrainedModel]:
        model = self._seeded(make, 1 + symbols_RT.shape[1], self.settings.vocab_size, **shape)
        rows = Dataset.from_dict({"input_ids": with_bos(symbols_RT).tolist()})
        return train(model, rows, self.settings.schedule, self.seed)

    def _seeded(
        self, make: Callable[..., PreTrainedModel], length: int, vocab_size: int, **shape: int
    ) -> PreTrainedModel:
        """A model whose initialisation follows from nothing but its arguments and the seed."""
        torch.manual_seed(self.seed)
        return make(self.backbone, replace(self.settings.shape, **shape), length, vocab_size)

    def _teacher(self) -> Iterator[tuple[str, int, TokenEntropies]]:
        """A causal model that reads pairs of symbols as one token, told of single symbols."""
        texts, bytes_and_special_tokens = as_texts(self.train_RT), 258
        own = train_tokenizer(texts, bytes_and_special_tokens)
        pairs = train_tokenizer(texts, bytes_and_special_tokens + self.settings.teacher_merges)
        model = self._seeded(causal_model, 1 + self.settings.length, len(pairs))
        rows = Dataset.from_dict({"input_ids": [text_ids(pairs, text) for text in texts]})
        for step, teacher in train(model, rows, self.settings.schedule, self.seed).items():
            yield "teacher", step, TeacherEntropy(teacher, pairs, own)(as_texts(self.held_out_RT))

    def _regressions(self, model: PreTrainedModel) -> Iterator[tuple[str, TokenEntropies]]:
        rows = ExactEntropy(model)(input_ids=with_bos(self.train_RT[: self.settings.regression_rows])).to_dataset()
        for alignment in ("prefix", "token"):
            fresh = self._seeded(regression_model, 1 + self.settings.length, self.settings.vocab_size)
            (fitted,) = train(fresh, rows, self.settings.regression_schedule, self.seed, alignment).values()
            yield f"regression, {alignment}", self._measure(RegressionEntropy(fitted))

    def _score(self, name: str, step: int, result: TokenEntropies, symbols_RT: Tensor) -> Iterator[Score]:
        is_in_nats = result.unit == "nats"
        values_RT = (result.bits() if is_in_nats else result.values)[:, 1:].numpy()
        for truth, truth_RT in self._truth_bits(symbols_RT).items():
            yield compare(name, step, truth, values_RT, truth_RT, is_in_bits=is_in_nats)

    def _truths(self) -> Iterator[Score]:
        """How near the truths come to each other, and the mean of one to itself."""
        truths = self._truth_bits(self.held_out_RT)
        last = self.settings.schedule.snapshots[-1]
        for truth, truth_RT in truths.items():
            for other, other_RT in truths.items():
                if other != truth:
                    yield compare(f"true {other}", last, truth, other_RT, truth_RT)
            yield compare("a constant", last, truth, np.full_like(truth_RT, truth_RT.mean()), truth_RT)

    def _truth_bits(self, symbols_RT: Tensor) -> dict[str, np.ndarray]:
        nats = {
            "surprisal": -self.source.log_probs(symbols_RT),
            "entropy": self.source.conditional_entropies(symbols_RT),
        }
        return {name: (values_RT / np.log(2)).numpy() for name, values_RT in nats.items()}


def with_bos(symbols_RT: Tensor) -> Tensor:
    return F.pad(symbols_RT + FIRST_SYMBOL, (1, 0), value=BOS)


def as_texts(symbols_RT: Tensor) -> list[str]:
    return ["".join(LETTERS[symbol] for symbol in row) for row in symbols_RT.tolist()]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return [tokenizer.bos_token_id, *encode_text(tokenizer, text)]


def run_cell(file: Path, settings: Settings, name: str, backbone: str, seed: int = 0) -> list[Score]:
    """The scores of a cell, from its file if it is there.

    Raises:
        ValueError: for a file that was made with other settings.
    """
    wanted = json.loads(json.dumps(asdict(settings)))
    if file.exists():
        content = json.loads(file.read_text())
        if content["settings"] != wanted:
            raise ValueError(f"{file} was made with other settings: choose another --output.")
    else:
        began, began_cpu = time.monotonic(), time.process_time()
        scores = Cell(settings, settings.sources()[name](), backbone, seed).scores()
        content = {
            "settings": wanted,
            "seconds": round(time.monotonic() - began, 1),
            "cpu_seconds": round(time.process_time() - began_cpu, 1),
            "scores": [{"source": name, "backbone": backbone, "seed": seed, **asdict(score)} for score in scores],
        }
        write_atomically(file, json.dumps(content, indent=1) + "\n")
    return content["scores"]


def chosen(kind: str, asked: list[str] | None, known: Iterable[str]) -> list[str]:
    """What was asked for, or all; a ValueError for a name that is not known."""
    known = list(known)
    if unknown := [name for name in asked or () if name not in known]:
        raise ValueError(f"there is no {kind} {', '.join(unknown)}: choose from {', '.join(known)}.")
    return asked or known


@app.command(cls=Command, epilog="Example: python studies/entropy_truth/entropy_truth.py --output runs/truth")
@one_line_errors()
def main(
    output: Annotated[Path, typer.Option(help="Folder for the scores of each source and backbone.")],
    records: Annotated[Path, typer.Option(help="Folder for tables, figure and JSON.")] = Path(__file__).parent,
    sources: Annotated[list[str] | None, typer.Option(help="By name; all if not given.")] = None,
    backbones: Annotated[list[str] | None, typer.Option(help=f"{' or '.join(BACKBONES)}; both if not given.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Of rows and models.")] = 3,
) -> None:
    """Train on every source, score every estimator; then write tables, figure and JSON."""
    torch.set_num_threads(1)
    settings = Settings()
    names = chosen("source", sources, settings.sources())
    cells = list(product(range(seeds), chosen("backbone", backbones, BACKBONES), names))
    scores = []
    for seed, backbone, name in track(cells, "sources, backbones and seeds", console=Console(stderr=True)):
        scores += run_cell(output / f"{name}-{backbone}-{seed}.json", settings, name, backbone, seed)
    write_record(records, asdict(settings), scores)


if __name__ == "__main__":
    app()
