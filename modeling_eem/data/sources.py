"""Sources of symbols with known conditional probabilities, to check claims about entropies.

Every source is a recursion over the symbols of a row: a state, the distribution of the next symbol given the state,
and how a symbol changes the state. `Source` turns these three into samples, log-probabilities and conditional
entropies. Everything is in float64 and in nats; tensor names end in their shape:

    B rows   T positions   S symbols   K hidden states   C contexts

Source: Badger & Neligeorge 2025, training towards the entropy ("sources with known conditional probabilities").
"""

import math
from abc import ABC, abstractmethod

import numpy as np
import torch


class Source(ABC):
    """A stationary or length-limited source of the symbols 0 … vocab_size - 1.

    Attributes:
        vocab_size: how many symbols there are.
        entropy_rate: exact nats per symbol; None if no closed form is known. The mean of `-log_probs` over a long
            sample always estimates it.
    """

    vocab_size: int
    entropy_rate: float | None

    @abstractmethod
    def _start(self, num_rows: int) -> torch.Tensor:
        """The state before the first symbol; its first axis is the rows."""

    @abstractmethod
    def _predict(self, state: torch.Tensor, position: int) -> torch.Tensor:
        """Probabilities of the symbol at `position`, `[b, s]`."""

    @abstractmethod
    def _update(self, state: torch.Tensor, symbols_B: torch.Tensor, position: int) -> torch.Tensor:
        """The state after the symbols at `position`."""

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """Independent rows from the beginning, int64 `[b, t]`; they depend on the generator alone.

        Raises:
            ValueError: for less than one row or one symbol.
        """
        if num_rows < 1 or length < 1:
            raise ValueError(f"num_rows and length must be at least 1, not {num_rows} and {length}.")
        state, symbols = self._start(num_rows), []
        for position in range(length):
            probs_BS = self._predict(state, position)
            symbols.append(torch.multinomial(probs_BS, 1, generator=generator).squeeze(1))
            state = self._update(state, symbols[-1], position)
        return torch.stack(symbols, dim=1)

    def next_probs(self, ids: torch.Tensor) -> torch.Tensor:
        """p(x_t = s | x_<t) for every symbol s, `[b, t]` → `[b, t, s]`; NaN after a prefix that cannot occur.

        Raises:
            ValueError: unless `ids` is `[b, t]`, t ≥ 1, and in the vocabulary.
        """
        if ids.ndim != 2 or ids.numel() == 0:
            raise ValueError(f"ids must have the shape [rows, positions] and not be empty, not {tuple(ids.shape)}.")
        if int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size:
            raise ValueError(f"ids must lie in 0 … {self.vocab_size - 1}: take special tokens out first.")
        state, probs = self._start(len(ids)), []
        for position, symbols_B in enumerate(ids.unbind(1)):
            probs.append(self._predict(state, position))
            state = self._update(state, symbols_B, position)
        return torch.stack(probs, dim=1)

    def log_probs(self, ids: torch.Tensor) -> torch.Tensor:
        """log p(x_t | x_<t) in nats, `[b, t]` → `[b, t]`; a row's values sum to log p(row). -inf: cannot occur."""
        return self.next_probs(ids).gather(2, ids[..., None]).squeeze(2).log()

    def conditional_entropies(self, ids: torch.Tensor) -> torch.Tensor:
        """H(X_t | x_<t) = -Σ_s p(s | x_<t) log p(s | x_<t) in nats, given the row's prefix, `[b, t]` → `[b, t]`."""
        return torch.special.entr(self.next_probs(ids)).sum(2)


class MarkovSource(Source):
    """A stationary Markov chain of order k: p(x_t | x_<t) = table[x_{t-k}, …, x_{t-1}, x_t]; order 0 is i.i.d.

    The first k symbols follow the stationary distribution π of k-tuples, so every position has the same statistics,
    and `entropy_rate` = Σ_c π(c) H(table[c]) exactly.

    Args:
        table: probabilities, k + 1 axes of `vocab_size`, the last one the next symbol's.

    Raises:
        ValueError: if the last axis does not hold probabilities, or the chain has no unique stationary distribution.
    """

    def __init__(self, table: torch.Tensor) -> None:
        table = _probabilities(table, "table")
        if len(set(table.shape)) != 1:
            raise ValueError(f"table must have vocab_size values along every axis, not shape {tuple(table.shape)}.")
        self.vocab_size, self.order = table.shape[-1], table.ndim - 1
        table_CS = table.reshape(-1, self.vocab_size)
        stationary_C = _stationary(self._tuple_transitions(table_CS))
        self.entropy_rate = float(stationary_C @ torch.special.entr(table_CS).sum(1))
        # one table for each number of symbols known so far, from the first symbols of the k-tuples on
        joints = [stationary_C.reshape(self.vocab_size ** (i + 1), -1).sum(1) for i in range(self.order)]
        marginals = [joint.reshape(-1, self.vocab_size) for joint in joints]
        self._tables = [joint_CS / joint_CS.sum(1, keepdim=True) for joint_CS in marginals] + [table_CS]

    @classmethod
    def random(cls, vocab_size: int, order: int, concentration: float, seed: int) -> "MarkovSource":
        """Rows drawn from a symmetric Dirichlet; a small concentration makes the next symbol predictable."""
        return cls(_dirichlet((vocab_size,) * (order + 1), concentration, np.random.default_rng(seed)))

    def _start(self, num_rows: int) -> torch.Tensor:
        return torch.zeros(num_rows, dtype=torch.long)

    def _predict(self, state: torch.Tensor, position: int) -> torch.Tensor:
        return self._tables[min(position, self.order)][state]

    def _update(self, state: torch.Tensor, symbols_B: torch.Tensor, position: int) -> torch.Tensor:
        return (state * self.vocab_size + symbols_B) % self.vocab_size**self.order

    def _tuple_transitions(self, table_CS: torch.Tensor) -> torch.Tensor:
        contexts_C1 = torch.arange(len(table_CS))[:, None]
        next_CS = self._update(contexts_C1, torch.arange(self.vocab_size), self.order)
        return table_CS.new_zeros(len(table_CS), len(table_CS)).scatter_add_(1, next_CS, table_CS)


class HiddenMarkovSource(Source):
    """Symbols emitted by a hidden stationary Markov chain: p(x_t | x_<t) = Σ_z p(z_t = z | x_<t) emissions[z, x_t].

    The scaled forward algorithm: the state is the belief p(z_t | x_<t), normalised at every step, so rows may have any
    length. `entropy_rate` is None: no closed form is known.

    Args:
        transitions_KK: p(next state | state).
        emissions_KS: p(symbol | state).

    Raises:
        ValueError: if rows are not probabilities, the shapes do not fit, or the chain has no unique stationary
            distribution.
    """

    entropy_rate = None

    def __init__(self, transitions_KK: torch.Tensor, emissions_KS: torch.Tensor) -> None:
        self.transitions_KK = _probabilities(transitions_KK, "transitions_KK")
        self.emissions_KS = _probabilities(emissions_KS, "emissions_KS")
        num_states, self.vocab_size = self.emissions_KS.shape
        if self.transitions_KK.shape != (num_states, num_states):
            raise ValueError(
                f"transitions_KK must have the shape {(num_states, num_states)} to fit the emissions, not "
                f"{tuple(self.transitions_KK.shape)}."
            )
        self._stationary_K = _stationary(self.transitions_KK)

    @classmethod
    def random(cls, vocab_size: int, num_states: int, concentration: float, seed: int) -> "HiddenMarkovSource":
        """Transitions and emissions drawn from symmetric Dirichlets of the same concentration."""
        generator = np.random.default_rng(seed)
        transitions_KK = _dirichlet((num_states, num_states), concentration, generator)
        return cls(transitions_KK, _dirichlet((num_states, vocab_size), concentration, generator))

    def _start(self, num_rows: int) -> torch.Tensor:
        return self._stationary_K.expand(num_rows, -1)

    def _predict(self, state: torch.Tensor, position: int) -> torch.Tensor:
        return state @ self.emissions_KS

    def _update(self, state: torch.Tensor, symbols_B: torch.Tensor, position: int) -> torch.Tensor:
        joint_BK = state * self.emissions_KS[:, symbols_B].T
        return joint_BK / joint_BK.sum(1, keepdim=True) @ self.transitions_KK


class CopySource(Source):
    """`half_length` uniform symbols, then the same again: each copied with probability 1 - noise, else uniform.

        p(x_t | x_<t) = (1 - noise) [x_t = x_{t - half_length}] + noise / vocab_size    for t ≥ half_length

    `entropy_rate` is the mean over a whole row of 2 · half_length symbols; shorter rows are its prefixes.

    Raises:
        ValueError: for less than one symbol or position, a noise outside [0, 1], or a row longer than
            2 · half_length.
    """

    def __init__(self, vocab_size: int, half_length: int, noise: float) -> None:
        if vocab_size < 1 or half_length < 1:
            raise ValueError(f"vocab_size and half_length must be at least 1, not {vocab_size} and {half_length}.")
        if not 0 <= noise <= 1:
            raise ValueError(f"noise must lie between 0 and 1, not be {noise}.")
        self.vocab_size, self.half_length = vocab_size, half_length
        self._uniform_S = torch.full((vocab_size,), 1 / vocab_size, dtype=torch.float64)
        self._copies_SS = (1 - noise) * torch.eye(vocab_size, dtype=torch.float64) + noise * self._uniform_S
        self.entropy_rate = (math.log(vocab_size) + float(torch.special.entr(self._copies_SS[0]).sum())) / 2

    def _start(self, num_rows: int) -> torch.Tensor:
        return torch.empty(num_rows, 0, dtype=torch.long)

    def _predict(self, state: torch.Tensor, position: int) -> torch.Tensor:
        if position >= 2 * self.half_length:
            raise ValueError(f"rows of this source end after {2 * self.half_length} symbols: shorten them.")
        if position < self.half_length:
            return self._uniform_S.expand(len(state), -1)
        return self._copies_SS[state[:, position - self.half_length]]

    def _update(self, state: torch.Tensor, symbols_B: torch.Tensor, position: int) -> torch.Tensor:
        return torch.cat([state, symbols_B[:, None]], dim=1)


class ParitySource(Source):
    """Blocks of `block_length` uniform symbols, except the last: it is the sum of the others modulo `vocab_size`.

    With two symbols that is their exclusive or. `entropy_rate` = (block_length - 1) / block_length · log vocab_size,
    the mean over whole blocks.

    Raises:
        ValueError: for fewer than two symbols or a block shorter than two.
    """

    def __init__(self, vocab_size: int, block_length: int) -> None:
        if vocab_size < 2 or block_length < 2:
            raise ValueError(f"vocab_size and block_length must be at least 2, not {vocab_size} and {block_length}.")
        self.vocab_size, self.block_length = vocab_size, block_length
        self.entropy_rate = (block_length - 1) / block_length * math.log(vocab_size)
        self._uniform_S = torch.full((vocab_size,), 1 / vocab_size, dtype=torch.float64)
        self._certain_SS = torch.eye(vocab_size, dtype=torch.float64)

    def _start(self, num_rows: int) -> torch.Tensor:
        return torch.zeros(num_rows, dtype=torch.long)

    def _predict(self, state: torch.Tensor, position: int) -> torch.Tensor:
        is_last = position % self.block_length == self.block_length - 1
        return self._certain_SS[state] if is_last else self._uniform_S.expand(len(state), -1)

    def _update(self, state: torch.Tensor, symbols_B: torch.Tensor, position: int) -> torch.Tensor:
        is_last = position % self.block_length == self.block_length - 1
        return torch.zeros_like(state) if is_last else (state + symbols_B) % self.vocab_size


def _probabilities(values: torch.Tensor, name: str) -> torch.Tensor:
    values = torch.as_tensor(values, dtype=torch.float64)
    if values.ndim == 0 or not (values >= 0).all() or not torch.allclose(values.sum(-1), values.new_ones(())):
        raise ValueError(f"{name} must hold probabilities: none negative, the last axis summing to 1.")
    return values / values.sum(-1, keepdim=True)


def _dirichlet(shape: tuple[int, ...], concentration: float, generator: np.random.Generator) -> torch.Tensor:
    if shape[-1] < 1 or concentration <= 0:
        raise ValueError(f"vocab_size and concentration must be positive, not {shape[-1]} and {concentration}.")
    return torch.from_numpy(generator.dirichlet(np.full(shape[-1], concentration), size=shape[:-1]))


def _stationary(transitions_CC: torch.Tensor) -> torch.Tensor:
    """π with π P = π and Σ π = 1, from π (I - P + 1 1ᵀ) = 1ᵀ.

    π is unique if some state can be reached from all states. The graph is asked, not the equations: with rounding,
    those of a chain that falls apart have a solution too, some mixture of its parts.
    """
    ones = torch.ones_like(transitions_CC)
    identity_CC = torch.eye(len(transitions_CC), dtype=transitions_CC.dtype)
    reached_CC = identity_CC + (transitions_CC > 1e-12)
    for _ in range(len(transitions_CC).bit_length()):
        reached_CC = (reached_CC @ reached_CC).clamp(max=1)
    stationary_C, info = torch.linalg.solve_ex((identity_CC - transitions_CC + ones).T, ones[0])
    if int(info) != 0 or not bool((reached_CC > 0).all(0).any()):
        raise ValueError("the chain has no unique stationary distribution: make all its states reach one another.")
    return stationary_C.clamp(min=0)
