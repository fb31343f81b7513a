"""Sources of known entropy against brute force: every short sequence, its probability by the definition."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from modeling_eem.data import CopySource, HiddenMarkovSource, MarkovSource, ParitySource, Source

F64 = torch.float64


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _stationary(transitions: torch.Tensor) -> torch.Tensor:
    """Where the chain ends, whatever it began with; half of the steps rest, so that it does not swing."""
    return torch.linalg.matrix_power(0.5 * transitions + 0.5 * torch.eye(len(transitions), dtype=F64), 1 << 9)[0]


def _dirichlet(*shape: int, concentration: float = 0.7) -> torch.Tensor:
    generator = np.random.default_rng(len(shape))
    return torch.from_numpy(generator.dirichlet([concentration] * shape[-1], size=shape[:-1]))


# Each source, the length of the rows that are enumerated, and p(row) by its definition, factor by factor.


def _markov(order: int) -> tuple[Source, int, Callable[[Sequence[int]], float]]:
    table = _dirichlet(*(3,) * (order + 1))
    contexts = list(itertools.product(range(3), repeat=order))
    transitions = torch.zeros(len(contexts), len(contexts), dtype=F64)
    for i, context in enumerate(contexts):
        for symbol in range(3):
            transitions[i, contexts.index((*context, symbol)[1:])] += table[(*context, symbol)]
    stationary = dict(zip(contexts, _stationary(transitions).tolist()))

    def probability(row: Sequence[int]) -> float:
        joint = sum(p for context, p in stationary.items() if context[: len(row)] == row[:order])
        return joint * math.prod(float(table[tuple(row[t - order : t + 1])]) for t in range(order, len(row)))

    return MarkovSource(table), order + 3, probability


def _hidden() -> tuple[Source, int, Callable[[Sequence[int]], float]]:
    """p(row) = Σ over all paths of hidden states."""
    source = HiddenMarkovSource.random(vocab_size=3, num_states=3, concentration=0.6, seed=4)
    transitions, emissions = source.transitions_KK.tolist(), source.emissions_KS.tolist()
    start = _stationary(source.transitions_KK).tolist()

    def probability(row: Sequence[int]) -> float:
        return math.fsum(
            start[path[0]]
            * math.prod(emissions[state][symbol] for state, symbol in zip(path, row))
            * math.prod(transitions[a][b] for a, b in itertools.pairwise(path))
            for path in itertools.product(range(3), repeat=len(row))
        )

    return source, 5, probability


def _copy() -> tuple[Source, int, Callable[[Sequence[int]], float]]:
    def probability(row: Sequence[int]) -> float:
        copies = [0.8 * (row[t] == row[t - 3]) + 0.2 / 3 for t in range(3, len(row))]
        return (1 / 3) ** min(len(row), 3) * math.prod(copies)

    return CopySource(vocab_size=3, half_length=3, noise=0.2), 6, probability


def _parity() -> tuple[Source, int, Callable[[Sequence[int]], float]]:
    def probability(row: Sequence[int]) -> float:
        blocks = [row[at : at + 3] for at in range(0, len(row), 3)]
        fits = all(sum(block[:2]) % 3 == block[2] for block in blocks if len(block) == 3)
        return fits * (1 / 3) ** sum(min(len(block), 2) for block in blocks)

    return ParitySource(vocab_size=3, block_length=3), 7, probability


CASES = {
    **{f"markov-{order}": _markov(order) for order in range(4)},
    "hidden": _hidden(),
    "copy": _copy(),
    "parity": _parity(),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Source, int, Callable[[Sequence[int]], float]]:
    return request.param


def _all_rows(source: Source, length: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(source.vocab_size), repeat=length)))


def test_every_sequence_has_its_probability(case: tuple[Source, int, Callable[[Sequence[int]], float]]) -> None:
    source, length, probability = case
    for t in (1, 2, length):
        rows = _all_rows(source, t)
        log_probs = source.log_probs(rows)
        assert log_probs.dtype == F64 and log_probs.shape == rows.shape
        expected = torch.tensor([probability(tuple(row)) for row in rows.tolist()], dtype=F64)
        # an impossible symbol is -inf; what comes after an impossible prefix is not defined
        actual = torch.where(expected > 0, log_probs.sum(1).exp(), 0.0)
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-14)
        assert actual.sum().item() == pytest.approx(1, abs=1e-12)
        assert (log_probs[expected == 0] == -math.inf).any(1).all()


def test_a_row_begins_like_its_prefix(case: tuple[Source, int, Callable[[Sequence[int]], float]]) -> None:
    source, length, _ = case
    rows = source.sample(50, length, _seeded())
    whole = source.log_probs(rows)
    for t in range(1, length):
        assert torch.equal(source.log_probs(rows[:, :t]), whole[:, :t])


def test_next_probabilities_and_their_entropies(case: tuple[Source, int, Callable[[Sequence[int]], float]]) -> None:
    """p(s | prefix) = p(prefix s) / p(prefix); H = -Σ p log p with 0 log 0 = 0."""
    source, length, probability = case
    rows = source.sample(40, length, _seeded(1))
    probs, entropies = source.next_probs(rows), source.conditional_entropies(rows)
    assert probs.shape == (40, length, source.vocab_size) and entropies.shape == (40, length)
    assert probs.dtype == entropies.dtype == F64
    torch.testing.assert_close(probs.sum(2), torch.ones(40, length, dtype=F64), rtol=0, atol=1e-12)
    for row, row_probs, row_entropies in zip(rows.tolist(), probs.tolist(), entropies.tolist()):
        for t in range(length):
            prefix = tuple(row[:t])
            given = probability(prefix) if prefix else 1.0
            expected = [probability((*prefix, symbol)) / given for symbol in range(source.vocab_size)]
            assert row_probs[t] == pytest.approx(expected, rel=1e-10, abs=1e-13)
            entropy = -sum(p * math.log(p) for p in expected if p > 0)
            assert row_entropies[t] == pytest.approx(entropy, rel=1e-9, abs=1e-12)


def test_samples_have_the_probabilities(case: tuple[Source, int, Callable[[Sequence[int]], float]]) -> None:
    """Pearson's χ² over the rows of three symbols, well within what chance gives."""
    source, _, probability = case
    rows = source.sample(20_000, 3, _seeded(2))
    assert rows.dtype == torch.int64 and rows.shape == (20_000, 3)
    counts = torch.zeros((3, 3, 3), dtype=F64).index_put_(tuple(rows.T), torch.ones(len(rows), dtype=F64), True)
    expected = torch.tensor([probability(tuple(row)) for row in _all_rows(source, 3).tolist()], dtype=F64) * len(rows)
    is_possible = expected > 0
    assert counts.flatten()[~is_possible].sum() == 0
    chi2 = ((counts.flatten() - expected) ** 2 / expected)[is_possible].sum().item()
    degrees = int(is_possible.sum()) - 1
    assert chi2 < degrees + 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize(
    "name, first, length", [("markov-0", 0, 40), ("markov-2", 2, 40), ("copy", 0, 6), ("parity", 0, 60)]
)
def test_long_samples_average_to_the_entropy_rate(name: str, first: int, length: int) -> None:
    source = CASES[name][0]
    rows = source.sample(5000, length, _seeded(3))
    for nats in (source.conditional_entropies(rows), -source.log_probs(rows)):
        assert nats[:, first:].mean().item() == pytest.approx(source.entropy_rate, rel=0.02, abs=1e-9)


@pytest.mark.parametrize("order", range(4))
def test_entropy_rate_of_a_chain_is_the_last_symbol_s_entropy(order: int) -> None:
    source, _, probability = CASES[f"markov-{order}"]
    rows = [tuple(row) for row in _all_rows(source, order + 1).tolist()]
    given = [probability(row[:-1]) if order else 1.0 for row in rows]
    rate = -sum(probability(row) * math.log(probability(row) / p) for row, p in zip(rows, given))
    assert source.entropy_rate == pytest.approx(rate, rel=1e-10)


def test_a_chain_is_stationary() -> None:
    source, _, probability = CASES["markov-2"]
    rows = [tuple(row) for row in _all_rows(source, 5).tolist()]
    for pair in itertools.product(range(3), repeat=2):
        shares = [sum(probability(row) for row in rows if row[at : at + 2] == pair) for at in range(4)]
        assert shares == pytest.approx([shares[0]] * 4, rel=1e-10)


def test_long_rows_do_not_underflow() -> None:
    source = HiddenMarkovSource.random(vocab_size=5, num_states=4, concentration=0.3, seed=0)
    rows = source.sample(2, 3000, _seeded())
    log_probs = source.log_probs(rows)
    assert log_probs.isfinite().all() and log_probs.sum(1).max() < -1000
    torch.testing.assert_close(source.next_probs(rows).sum(2), torch.ones(2, 3000, dtype=F64), rtol=0, atol=1e-12)


def test_the_generator_alone_decides() -> None:
    source = CASES["hidden"][0]
    first = source.sample(8, 20, _seeded(5))
    torch.manual_seed(123)
    assert torch.equal(source.sample(8, 20, _seeded(5)), first)
    assert not torch.equal(source.sample(8, 20, _seeded(6)), first)


@pytest.mark.parametrize("make", [MarkovSource.random, HiddenMarkovSource.random])
def test_seed_and_concentration_decide_a_random_source(make: Callable[[int, int, float, int], Source]) -> None:
    """The seed decides, and a small concentration makes the next symbol predictable."""
    rows = make(4, 2, 0.5, 1).sample(200, 30, _seeded())

    def surprisal(concentration: float, seed: int) -> float:
        source = make(4, 2, concentration, seed)
        return -source.log_probs(source.sample(200, 30, _seeded())).mean().item()

    assert torch.equal(make(4, 2, 0.5, 1).log_probs(rows), make(4, 2, 0.5, 1).log_probs(rows))
    assert not torch.equal(make(4, 2, 0.5, 1).log_probs(rows), make(4, 2, 0.5, 2).log_probs(rows))
    assert surprisal(0.1, 0) < surprisal(1.0, 0) < surprisal(100.0, 0) <= math.log(4) + 1e-3


def test_noise_is_the_difference_between_copying_and_chance() -> None:
    exact, chance = CopySource(5, 4, noise=0.0), CopySource(5, 4, noise=1.0)
    rows = exact.sample(20, 8, _seeded())
    assert torch.equal(rows[:, :4], rows[:, 4:]) and exact.conditional_entropies(rows)[:, 4:].abs().max() == 0
    assert exact.entropy_rate == pytest.approx(math.log(5) / 2) and chance.entropy_rate == pytest.approx(math.log(5))


PERIODIC = torch.tensor([[0.0, 1.0], [1.0, 0.0]])


def test_a_periodic_chain_has_a_stationary_distribution() -> None:
    source = MarkovSource(PERIODIC)
    assert source.next_probs(torch.tensor([[0, 1]])).tolist() == [[[0.5, 0.5], [0.0, 1.0]]]
    assert source.entropy_rate == 0


@pytest.mark.parametrize("seed", range(8))
def test_chains_that_fall_apart_are_refused(seed: int) -> None:
    """Rounding solves their equations, by one of many answers; so the graph is asked."""
    parts = [_dirichlet(size, size) for size in (2 + seed % 3, 3)]
    order = torch.randperm(sum(map(len, parts)), generator=_seeded(seed))
    apart = torch.block_diag(*parts)[order][:, order]
    with pytest.raises(ValueError, match="no unique stationary distribution"):
        MarkovSource(apart)
    with pytest.raises(ValueError, match="no unique stationary distribution"):
        HiddenMarkovSource(apart, torch.eye(len(apart)))
    leak = apart.clone()  # from the first state into all: one part is only passed through
    leak[0] = 1 / len(leak)
    assert MarkovSource(leak).entropy_rate > 0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: MarkovSource(torch.tensor([[0.5, 0.6], [0.5, 0.5]])), "table must hold probabilities"),
        (lambda: MarkovSource(torch.tensor([[1.5, -0.5], [0.5, 0.5]])), "table must hold probabilities"),
        (lambda: MarkovSource(torch.tensor([[math.nan, 1], [0.5, 0.5]])), "table must hold probabilities"),
        (lambda: MarkovSource(torch.tensor(1.0)), "table must hold probabilities"),
        (lambda: MarkovSource(torch.full((2, 3), 1 / 3)), r"vocab_size values along every axis, not shape \(2, 3\)"),
        (lambda: MarkovSource.random(3, 1, 0.0, 0), "concentration must be positive"),
        (lambda: HiddenMarkovSource(torch.eye(1), torch.ones(2, 1)), "transitions_KK must have the shape"),
        (lambda: HiddenMarkovSource(PERIODIC, torch.ones(2, 2)), "emissions_KS must hold probabilities"),
        (lambda: CopySource(0, 3, 0.1), "vocab_size and half_length"),
        (lambda: CopySource(3, 0, 0.1), "vocab_size and half_length"),
        (lambda: CopySource(3, 3, 1.1), "noise must lie between"),
        (lambda: CopySource(3, 3, 0.1).sample(1, 7, _seeded()), "end after 6 symbols"),
        (lambda: CopySource(3, 3, 0.1).log_probs(torch.zeros(1, 7, dtype=torch.long)), "end after 6 symbols"),
        (lambda: ParitySource(1, 3), "vocab_size and block_length"),
        (lambda: ParitySource(3, 1), "vocab_size and block_length"),
        (lambda: ParitySource(3, 2).sample(0, 4, _seeded()), "num_rows and length"),
        (lambda: ParitySource(3, 2).sample(4, 0, _seeded()), "num_rows and length"),
        (lambda: ParitySource(3, 2).log_probs(torch.tensor([[3]])), "ids must lie in 0 … 2"),
        (lambda: ParitySource(3, 2).log_probs(torch.tensor([[-1]])), "ids must lie in 0 … 2"),
        (lambda: ParitySource(3, 2).log_probs(torch.tensor([0])), "ids must have the shape"),
        (lambda: ParitySource(3, 2).log_probs(torch.zeros(2, 0, dtype=torch.long)), "ids must have the shape"),
    ],
)
def test_bad_parameters_and_ids_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
