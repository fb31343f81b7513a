"""Turns items into windows, each of the kind with the least real cost.

In a batch,

1. each window of text is encoded without a code, with a code if the model has one, and as bytes; the shortest wins;
2. neighbouring byte windows become one, up to 64 KiB;
3. if one byte window over up to 64 KiB of neighbours is shorter than all of them, it replaces them. This keeps a file
   within its plain bytes + 0.1 %, whatever the input, and leaves to zstd what repeats over many windows;
4. windows get their numbers. If they carry context, a window whose context is not the one that (1) assumed is encoded
   again, or becomes bytes if that is now shorter.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from modeling_eem.codec.byte_windows import pack_bytes, quick_length, trial_length
from modeling_eem.codec.container import MAX_PLAIN, RUN, Kind, pack_record
from modeling_eem.codec.text import Item
from modeling_eem.codec.window_model import WindowModel

BATCH = 64  # windows of text encoded in step
_BATCH_BYTES = 1 << 20
_HOPELESS = 1.4  # zstd's quick level may miss a length by this factor that its best level might reach
_BYTES_FRAMING = 14  # bytes; head, count and check sum of a byte window, and its place in the index
_NAME = 10  # bytes that the model's id and release take in the header
_BLOCK = 1 << 13  # bytes of neighbours that become bytes together
_MOST_BLOCKS = 16  # in less than 128 KiB
_INDEX = 4  # the most bytes of the index that a window takes (1.6 if its neighbours are like it)


@dataclass(frozen=True)
class Window:
    """A window as it goes into the file: kind, payload and plain bytes; for text also its tokens and context.

    `causal_length` is the payload's length without a code; `code` is the code that the payload begins with.
    """

    kind: Kind
    payload: bytes
    data: bytes
    tokens: list[int] | None = None
    context: tuple[int, ...] = ()
    causal_length: int = 0
    code: np.ndarray | None = field(default=None, compare=False)

    @property
    def count(self) -> int:
        return len(self.data) if self.tokens is None else len(self.tokens)


def context_tokens(model: WindowModel) -> int:
    """Tokens that a window takes from the previous window, if windows carry context: (n - 1) // 2."""
    return (model.context - 1) // 2


def capacity(model: WindowModel, carry: bool) -> int:
    """Tokens of a full window."""
    return model.context - 1 - (context_tokens(model) if carry else 0)


def carried_context(model: WindowModel, number: int, before: list[int] | None) -> list[int]:
    """The context of window `number` after a window of tokens `before` (None: a window of bytes, or no window)."""
    if before is None or number % RUN == 0:
        return []
    return before[max(len(before) - context_tokens(model), 0) :]


class WindowEncoder:
    """Turns a stream of items into a stream of windows, a batch in memory at a time."""

    def __init__(self, model: WindowModel | None, carry: bool) -> None:
        self._model = model
        self._carry = carry
        self._number = 0  # the next window's
        self._before: list[int] | None = None  # tokens of the previous window
        self._has_text = False  # in the file so far

    def encode(self, items: Iterable[Item]) -> Iterator[Window]:
        """All windows of `items`, in order."""
        batch: list[Item] = []
        text = size = 0
        for item in items:
            batch.append(item)
            text += item.tokens is not None
            size += len(item.data)
            if text == BATCH or size >= _BATCH_BYTES:
                parts, left = _without_open_end(self._parts(batch))
                yield from self._finished(parts)
                batch, text, size = [left] if left else [], 0, len(left.data) if left else 0
        yield from self._finished(self._parts(batch))

    def _parts(self, items: list[Item]) -> list[Window | Item]:
        """Windows of text that are shorter than their bytes, and bytes between them."""
        texts = [item for item in items if item.tokens is not None]
        contexts: list[list[int]] = [[] for _ in texts]
        if self._carry and self._model is not None:  # numbers are not known yet: assume no fresh start
            before = [self._before, *(item.tokens for item in items)]
            pairs = zip(before, items)
            contexts = [carried_context(self._model, 1, old) for old, item in pairs if item.tokens is not None]
        encoded = iter(self._text_windows(texts, contexts))
        parts: list[Window | Item] = [item if item.tokens is None else _cheaper(next(encoded)) for item in items]
        parts = _mended(parts)
        if not self._has_text and not self._names_its_model(parts):
            return _merged([Item(part.data) for part in parts])
        return parts

    def _names_its_model(self, parts: list[Window | Item]) -> bool:
        """Whether a file's first text alone saves more than the model's name costs."""
        text = [part for part in parts if isinstance(part, Window)]
        saved = sum(_cost(Item(part.data)) - _cost(part) for part in text)
        self._has_text = saved > _NAME
        return self._has_text

    def _finished(self, parts: list[Window | Item]) -> list[Window]:
        """The windows of a batch as they are in the file."""
        windows = [
            window for part in parts for window in ([part] if isinstance(part, Window) else _byte_windows(part))
        ]
        while stale := self._stale(windows):
            items = [Item(windows[index].data, windows[index].tokens) for index in stale]
            again = self._text_windows(items, list(stale.values()))
            for index, item, window in zip(stale, items, again):
                windows[index] = window if isinstance(_cheaper(window), Window) else next(_byte_windows(item))
        self._number += len(windows)
        if windows:
            self._before = windows[-1].tokens
        return windows

    def _stale(self, windows: list[Window]) -> dict[int, list[int]]:
        """Windows encoded with another context than the decoder will have, and the decoder's context."""
        if not self._carry or self._model is None:
            return {}
        stale = {}
        before = self._before
        for index, window in enumerate(windows):
            if window.tokens is not None:
                context = carried_context(self._model, self._number + index, before)
                if tuple(context) != window.context:
                    stale[index] = context
            before = window.tokens
        return stale

    def _text_windows(self, items: list[Item], contexts: list[list[int]]) -> list[Window]:
        """Each item of text, encoded without a code, or with one if that is shorter."""
        model = self._model
        if not items or model is None:  # without a model there is no text
            return []
        tokens = [item.tokens for item in items if item.tokens is not None]
        causal = model.encode_windows(tokens, contexts)
        coded: Sequence[bytes | None] = [None] * len(items)
        codes: Sequence[np.ndarray | None] = [None] * len(items)
        if model.has_code:
            codes = model.encode_codes(tokens)
            coded = model.encode_windows(tokens, contexts, codes)
        full = capacity(model, self._carry)
        windows = []
        for item, ids, context, plain, with_code, code in zip(items, tokens, contexts, causal, coded, codes):
            kind, payload, own = Kind.TEXT, plain, None
            if with_code is not None and len(with_code) < len(plain):
                kind, payload, own = Kind.CODED, with_code, code
            kind = Kind(kind + (len(ids) == full))
            windows.append(Window(kind, payload, item.data, ids, tuple(context), len(plain), own))
        return windows


def _cheaper(window: Window) -> Window | Item:
    """A window of text, or its bytes if they are no longer."""
    return window if len(window.payload) < len(pack_bytes(window.data)[1]) else Item(window.data)


def _mended(parts: list[Window | Item]) -> list[Window | Item]:
    """The parts of a batch, with more of them as bytes if that makes the file shorter."""
    return _merged(_joined(_absorbed(_merged(parts))))


def _merged(parts: list[Window | Item]) -> list[Window | Item]:
    """The parts, with neighbouring runs of bytes joined."""
    merged: list[Window | Item] = []
    for part in parts:
        if merged and isinstance(part, Item) and isinstance(merged[-1], Item):
            merged[-1] = Item(merged[-1].data + part.data)
        else:
            merged.append(part)
    return merged


def _absorbed(parts: list[Window | Item]) -> list[Window | Item]:
    """The parts; text next to bytes becomes bytes too if one window for all of them is shorter."""
    out: list[Window | Item] = []
    text: list[Window | Item] = []
    for part in [*parts, None]:
        if isinstance(part, Window):
            text.append(part)
            continue
        before = [out.pop()] if out and text else []
        out += _shorter(before + text + ([part] if part is not None else []))
        text = []
    return out


def _joined(parts: list[Window | Item]) -> list[Window | Item]:
    """The parts; neighbours are replaced by one window of their bytes wherever that is shorter."""
    out: list[Window | Item] = []
    open_parts: list[Window | Item] = []
    for part in parts:
        whole, rest = _without_open_end([part]) if isinstance(part, Item) else ([], part)
        if whole:  # a window of 64 KiB is full
            out += _cheapest_cover(open_parts) + whole
            open_parts = []
        open_parts += [rest] if rest is not None else []
    return out + _cheapest_cover(open_parts)


def _cheapest_cover(parts: list[Window | Item]) -> list[Window | Item]:
    """The shortest way to store the parts in order: as they are, or runs of up to 64 KiB of them as bytes.

    Runs begin and end at blocks of about 8 KiB; their length is taken from a faster level of zstd than the final one.
    """
    blocks = _blocks(parts)
    data = [b"".join(part.data for part in block) for block in blocks]
    costs = [sum(map(_cost, block)) for block in blocks]
    best: list[tuple[int, int, bool]] = [(0, 0, False)]  # up to each block: cost, where its last run begins, as bytes
    for end in range(1, len(blocks) + 1):
        choice = (best[end - 1][0] + costs[end - 1], end - 1, False)
        run, as_it_is = b"", 0
        for start in reversed(range(end)):
            run, as_it_is = data[start] + run, as_it_is + costs[start]
            if len(run) > MAX_PLAIN:
                break
            if quick_length(run) < _HOPELESS * as_it_is:
                choice = min(choice, (best[start][0] + trial_length(run) + _BYTES_FRAMING, start, True))
        best.append(choice)
    cover: list[Window | Item] = []
    end = len(blocks)
    while end:
        _, start, as_bytes = best[end]
        cover = ([Item(b"".join(data[start:end]))] if as_bytes else blocks[start]) + cover
        end = start
    return cover


def _blocks(parts: list[Window | Item]) -> list[list[Window | Item]]:
    target = min(sum(len(part.data) for part in parts) // _MOST_BLOCKS, _BLOCK)
    blocks: list[list[Window | Item]] = []
    size = target
    for part in parts:
        if size >= target:
            blocks.append([])
            size = 0
        blocks[-1].append(part)
        size += len(part.data)
    return blocks


def _shorter(parts: list[Window | Item]) -> list[Window | Item]:
    """The parts, or one window of their bytes if they fit into one and it is shorter."""
    data = b"".join(part.data for part in parts)
    if len(parts) < 2 or len(data) > MAX_PLAIN:
        return parts
    cost = sum(map(_cost, parts))
    if quick_length(data) > _HOPELESS * cost or _cost(Item(data)) >= cost:
        return parts
    return [Item(data)]


def _cost(part: Window | Item) -> int:
    """The most bytes that it takes in the file."""
    window = part if isinstance(part, Window) else next(_byte_windows(part))
    return len(pack_record(0, 0, window.kind, window.count, window.payload)) + _INDEX


def _without_open_end(parts: list[Window | Item]) -> tuple[list[Window | Item], Item | None]:
    """The parts of a batch, and the bytes at its end that the next batch may add to, less than 64 KiB."""
    if not parts or isinstance(parts[-1], Window):
        return parts, None
    data = parts[-1].data
    whole = len(data) // MAX_PLAIN * MAX_PLAIN
    closed = [Item(data[:whole])] if whole else []
    return parts[:-1] + closed, Item(data[whole:]) if whole < len(data) else None


def _byte_windows(item: Item) -> Iterator[Window]:
    for start in range(0, len(item.data), MAX_PLAIN):
        data = item.data[start : start + MAX_PLAIN]
        kind, payload = pack_bytes(data)
        yield Window(kind, payload, data)


__all__ = ["BATCH", "Window", "WindowEncoder", "capacity", "carried_context", "context_tokens"]
