"""The fast decoder: weights are packed once, then a whole window or group of windows runs in one compiled call.

Threads share the windows, each with its own working memory; no call waits for another.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .code_memory import code_memory
from .entropy_coder import RangeDecoder
from .fast_windows import decode_group, score_window
from .packed_weights import make_room, pack_parameters
from .threads import num_threads
from .weights import Sizes, Tensors

# How many windows one thread decodes in step, and how many bytes their cache may take.
WINDOWS_IN_STEP = 32
CACHE_BYTES = 1 << 26


class FastDecoder:
    """The same as `PlainDecoder`, in parallel on `num_threads()` threads."""

    def __init__(self, sizes: Sizes, tensors: Tensors) -> None:
        self._sizes = sizes
        self._tensors = tensors
        self._parameters = pack_parameters(sizes, tensors)

    def memory(self, codes: Sequence[np.ndarray | None]) -> np.ndarray:
        return code_memory(self._sizes, self._tensors, codes)

    def score(self, texts: Sequence[Sequence[int]], first: Sequence[int], memory_BD: np.ndarray) -> list[np.ndarray]:
        """See `PlainDecoder.score`."""
        slots = self._sizes.num_memory_positions

        def score_some(indices: list[int]) -> None:
            longest = max(len(texts[index]) for index in indices)
            room = make_room(self._sizes, 1, longest)
            for index in indices:
                tokens_T = np.array(texts[index], dtype=np.int32)
                x_TD = np.zeros((len(tokens_T) - 1 + slots, self._sizes.hidden_size), dtype=np.int32)
                symbols = np.zeros((3, len(tokens_T) - first[index]), dtype=np.int64)
                if symbols.size:
                    memory_1D = memory_BD[index : index + 1]
                    score_window(self._parameters, room, tokens_T, first[index], memory_1D, x_TD, symbols)
                scores[index] = symbols

        scores: list[np.ndarray] = [np.empty(0)] * len(texts)
        threads = min(num_threads(), len(texts))
        _in_threads(score_some, [list(range(thread, len(texts), threads)) for thread in range(threads)])
        return scores

    def decode(
        self, coders: Sequence[RangeDecoder], texts: Sequence[list[int]], ends: Sequence[int], memory_BD: np.ndarray
    ) -> list[bool]:
        """See `PlainDecoder.decode`."""
        sizes = self._sizes
        is_damaged = [False] * len(texts)
        most = max(1, CACHE_BYTES // (sizes.num_layers * sizes.num_positions * sizes.hidden_size))
        batch_size = min(WINDOWS_IN_STEP, most, -(-len(texts) // num_threads()))
        # Windows of about equal length run in step, the longest first.
        order = sorted(range(len(texts)), key=lambda index: -ends[index])

        def decode_some(indices: list[int]) -> None:
            data = b"".join(coders[index].data for index in indices)
            starts = np.cumsum([0, *(len(coders[index].data) for index in indices)])
            longest = ends[indices[0]]
            tokens_BT = np.zeros((len(indices), longest), dtype=np.int32)
            places = np.zeros((len(indices), 2), dtype=np.int64)
            state = np.array([coders[index].state for index in indices], dtype=np.uint64)
            for row, index in enumerate(indices):
                tokens_BT[row, : len(texts[index])] = texts[index]
                places[row] = starts[row] + coders[index].position, starts[row + 1]
            damaged = np.zeros(len(indices), dtype=np.bool_)
            decode_group(
                self._parameters,
                make_room(sizes, len(indices), 1),
                tokens_BT,
                np.array([len(texts[index]) for index in indices]),
                np.array([ends[index] for index in indices]),
                np.ascontiguousarray(memory_BD[indices]),
                state,
                np.frombuffer(data or b"\0", dtype=np.uint8),
                places,
                damaged,
                sizes.num_memory_positions,
                np.zeros((len(indices), sizes.hidden_size), dtype=np.int32),
                np.zeros(len(indices), dtype=np.int32),
            )
            for row, index in enumerate(indices):
                offset, low, width = map(int, state[row])
                coders[index].resume(offset, low, width, int(places[row, 0] - starts[row]))
                texts[index][:] = tokens_BT[row, : ends[index]].tolist()
                is_damaged[index] = bool(damaged[row])

        _in_threads(decode_some, [order[first : first + batch_size] for first in range(0, len(order), batch_size)])
        return is_damaged


def _in_threads(function: Callable[[list[int]], None], jobs: list[list[int]]) -> None:
    """Call `function` with each job that is not empty."""
    jobs = [job for job in jobs if job]
    if len(jobs) < 2:
        for job in jobs:
            function(job)
        return
    with ThreadPoolExecutor(min(num_threads(), len(jobs))) as pool:
        list(pool.map(function, jobs))
