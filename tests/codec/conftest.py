"""What the codec's tests share: integer models of tiny random models, and a codec model of a few lines.

The latter has the real one's interface, so that the file is tested apart from the arithmetic.
"""

import hashlib
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import log2
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_eem import EEMConfig, EEMForCausalLM, MaskedMixerConfig, MaskedMixerForCausalLM
from modeling_eem.codec import Codec, IntegerModel, build_integer_model
from modeling_eem.data import train_tokenizer
from modeling_eem.data.tokenizer import encode_text, rust_tokenizer

TEXT = "the sea was calm and a ship came over it from far away with grey sails at dawn while we slept. "
CONTEXT = 24
_MIXERS = {
    "flat": {},
    "tied": {"tie_word_embeddings": True},
    "heads": {"num_mixing_heads": 4},
    "taps": {"mixing_kernel_size": 4, "num_mixing_heads": 2},
    # Sizes that fill no vector, word or block.
    "odd": {"hidden_size": 30, "intermediate_size": 67, "num_mixing_heads": 3, "max_position_embeddings": 21},
}
_EEMS = {
    "token": {"code_dtype": "float8_e4m3fn", "bottleneck_size": 6},
    "embedding": {"code_dtype": "int5", "bottleneck_size": 6},
    "combination": {"code_dtype": "float16", "bottleneck_size": None},
}


@pytest.fixture(scope="session")
def float_model() -> Callable[..., PreTrainedModel]:
    """A tiny random model by kind, in evaluation mode."""

    def make(kind: str, vocab_size: int = 280, **changes) -> PreTrainedModel:
        torch.manual_seed(0)
        common = {
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": 1,
            "pad_token_id": 0,
            **changes,
        }
        if kind in _MIXERS:
            return MaskedMixerForCausalLM(MaskedMixerConfig(**common | _MIXERS[kind])).eval()
        config = EEMConfig(
            encoder_config={**common, "hidden_size": 16, "position_alignment": "right"},
            decoder_config={**common, "max_position_embeddings": CONTEXT + int(kind == "token")},
            memory_introduction=kind,
            **_EEMS[kind],
        )
        return EEMForCausalLM(config).eval()

    return make


@pytest.fixture(scope="session")
def integer_model(float_model: Callable[..., PreTrainedModel]) -> Callable[[str], IntegerModel]:
    """The integer model of `float_model(kind)`."""
    tokenizer = train_tokenizer([TEXT], 280)
    made: dict[str, IntegerModel] = {}

    def make(kind: str) -> IntegerModel:
        if kind not in made:
            model = float_model(kind, len(tokenizer), bos_token_id=tokenizer.bos_token_id)
            made[kind] = build_integer_model(model, tokenizer, [TEXT * 3, TEXT])
        return made[kind]

    return make


@pytest.fixture(scope="session")
def draw_windows() -> Callable[[IntegerModel, int], tuple[list[list[int]], list[list[int]]]]:
    """Random windows of all lengths from 0 on, and contexts that fit before them."""

    def draw(model: IntegerModel, count: int) -> tuple[list[list[int]], list[list[int]]]:
        rng = np.random.default_rng(count)
        windows, contexts = [], []
        for _ in range(count):
            length = int(rng.integers(0, model.context))
            known = int(rng.integers(0, model.context - length))
            windows.append(rng.integers(3, model.sizes.vocab_size, length).tolist())
            contexts.append(rng.integers(3, model.sizes.vocab_size, known).tolist())
        return windows, contexts

    return draw


# An early README and the beginning of a changelog, kept as they were: the stand-in has seen the first of the two.
_ENGLISH = (Path(__file__).parent / "data/english.md").read_text()
_WORDS = _ENGLISH[: _ENGLISH.index("# Changelog")]


def _bits(intervals: list[tuple[int, int, int]]) -> float:
    return sum(log2(total / count) for _, count, total in intervals)


class StandIn:
    """Counts of tokens after the token before, of `_WORDS`; tokens of the context count more.

    The code of a window says how far it follows those counts. A payload is one number of an asymmetric numeral system.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int, has_code: bool) -> None:
        self.backend_tokenizer = rust_tokenizer(tokenizer)
        self._bos = tokenizer.bos_token_id
        self.context = context
        self.has_code = has_code
        self.decoded = 0
        self._known: dict[tuple, list[int]] = {}
        ids = encode_text(tokenizer, _WORDS)
        self.vocab_size = len(tokenizer)
        self._counts = np.ones(len(tokenizer), dtype=np.int64)
        np.add.at(self._counts, ids, 8)
        self._successors: dict[int, list[int]] = {}
        for before, token in zip(ids, ids[1:]):
            self._successors.setdefault(before, []).append(token)
        self.id = hashlib.sha256(f"{context} {has_code} {ids}".encode()).hexdigest()

    def _start(self, context: Sequence[int]) -> np.ndarray:
        counts = self._counts.copy()
        np.add.at(counts, np.array(context, dtype=np.int64), 8)
        return counts

    def _ends(self, counts: np.ndarray, before: int | None, code: int | None) -> list[int]:
        """Where each token's counts end, a leading 0 before them."""
        after = counts.copy()
        np.add.at(after, self._successors.get(before, []), 1_000 if code is None else 10**code)
        return [0, *after.cumsum().tolist()]

    def _intervals(self, window: list[int], context: Sequence[int], code: int | None) -> list[tuple[int, int, int]]:
        """(start, count, total) of each token."""
        counts = self._start(context)
        known = [*context, *window]
        befores = [None, *known][len(context) :]
        intervals = []
        for before, token in zip(befores, window):
            ends = self._ends(counts, before, code)
            intervals.append((ends[token], ends[token + 1] - ends[token], ends[-1]))
        return intervals

    def encode_windows(
        self,
        windows: Sequence[list[int]],
        contexts: Sequence[list[int]] | None = None,
        codes: Sequence[np.ndarray] | None = None,
    ) -> list[bytes]:
        assert codes is None or self.has_code
        payloads = []
        for index, window in enumerate(windows):
            context = contexts[index] if contexts is not None else []
            assert window and len(window) + len(context) < self.context
            assert self._bos not in window
            code = int(codes[index][0]) if codes is not None else None
            state = 1 << 24
            for start, count, total in reversed(self._intervals(window, context, code)):
                state = state // count * total + start + state % count
            packed = state.to_bytes((state.bit_length() + 7) // 8, "little")
            payloads.append((b"" if code is None else bytes([code])) + packed)
        return payloads

    def decode_windows(
        self,
        payloads: Sequence[bytes],
        lengths: Sequence[int],
        contexts: Sequence[list[int]] | None = None,
        with_code: Sequence[bool] | None = None,
    ) -> list[list[int]]:
        self.decoded += len(payloads)
        contexts = [[]] * len(payloads) if contexts is None else contexts
        with_code = [False] * len(payloads) if with_code is None else with_code
        keys = zip(payloads, lengths, map(tuple, contexts), with_code)
        return [list(self._decode(*key)) for key in keys]

    def _decode(self, payload: bytes, length: int, context: tuple[int, ...], coded: bool) -> list[int]:
        """One window; what was decoded once is remembered, for tests decode the same windows over and over."""
        key = (payload, length, context, coded)
        if key in self._known:
            return self._known[key]
        code = payload[0] if coded else None
        counts = self._start(context)
        state, window = int.from_bytes(payload[coded:], "little"), []
        before = context[-1] if context else None
        for _ in range(length):
            ends = self._ends(counts, before, code)
            place = state % ends[-1]
            before = bisect_right(ends, place) - 1
            state = state // ends[-1] * (ends[before + 1] - ends[before]) + place - ends[before]
            window.append(before)
        self._known[key] = window
        return window

    def encode_codes(self, windows: Sequence[list[int]]) -> list[np.ndarray]:
        codes = []
        for window in windows:
            costs = {code: _bits(self._intervals(window, [], code)) for code in (0, 2, 7)}
            codes.append(np.array([min(costs, key=costs.__getitem__)]))
        return codes

    def window_costs_bits(
        self,
        windows: Sequence[list[int]],
        contexts: Sequence[list[int]] | None = None,
        codes: Sequence[np.ndarray] | None = None,
    ) -> list[float]:
        costs = []
        for index, window in enumerate(windows):
            code = int(codes[index][0]) if codes is not None else None
            intervals = self._intervals(window, contexts[index] if contexts is not None else [], code)
            costs.append(_bits(intervals) + 8 * (code is not None))
        return costs

    def save_pretrained(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "stand_in").write_text(self.id)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([_WORDS], 512)


@pytest.fixture(scope="session")
def stand_in(tokenizer: PreTrainedTokenizerBase) -> Callable[..., StandIn]:
    """Makes a stand-in model of 130 positions: 129 tokens a full window, 65 where windows carry."""

    def make(context: int = 130, has_code: bool = False) -> StandIn:
        return StandIn(tokenizer, context, has_code)

    return make


@pytest.fixture(scope="session")
def codec(stand_in: Callable[..., StandIn]) -> Codec:
    return Codec(stand_in())


@pytest.fixture(scope="session")
def codecs(stand_in: Callable[..., StandIn]) -> dict[str, Codec]:
    """By name: each way to compress."""
    return {
        "bytes": Codec(None),
        "causal": Codec(stand_in()),
        "carry": Codec(stand_in(), carry=True),
        "code": Codec(stand_in(has_code=True)),
        "code and carry": Codec(stand_in(has_code=True), carry=True),
    }


@pytest.fixture(scope="session")
def text() -> bytes:
    """About 10 kB of English, most of which the stand-in has seen."""
    return _ENGLISH.encode()


@pytest.fixture(scope="session")
def awkward(text: bytes) -> dict[str, bytes]:
    """Inputs that codecs get wrong, by name."""
    draw = random.Random(0)
    noise = draw.randbytes(3000)
    return {
        "empty": b"",
        "one byte": b"\xff",
        "one letter": b"a",
        "NUL": b"\0",
        "newlines": b"a\r\nb\rc\n\r\n\n\n" * 30,
        "special tokens": b"<|endoftext|> and <|pad|><|endoftext|>" * 20,
        "text": text,
        "byte order mark": b"\xef\xbb\xbf" + text[:500],
        "random": noise,
        "latin-1": text[:3000].replace(b"e", b"\xe9"),
        "cut character": "naïve €".encode()[:-1],
        "lone continuation": b"\x80" + text[:300] + b"\xc3",
        "surrogates": b"\xed\xa0\x80\xed\xb0\x80" * 5,
        "overlong": b"\xc0\x80\xf5\x80\x80\x80",
        "text in noise": noise + text[:2000] + noise + text[:40] + noise,
        "zeros": bytes(200_000),
        "zeros in text": text[:5000] + bytes(30_000) + text[5000:9000],
        "one line": b"the same line again and again\n" * 3000,
        "other script": "Все люди рождаются свободными. 人人生而自由，在尊严和权利上一律平等。🙂".encode() * 20,
        "combining marks": ("e\u0301\u0323" * 200).encode(),
        "spaces": b" \t \n" * 5000,
        "base64": b"".join(bytes([draw.choice(b"ABCDEFGHabcdefgh0123+/")]) for _ in range(9000)),
    }
