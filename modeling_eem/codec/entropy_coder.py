"""A range coder over integer counts: 64 bits of state, any total below 2^32, a byte at a time.

The interval `[low, low + range)` of 64-bit numbers is cut into `total` parts of `range // total`. A symbol that owns
`count` parts from `start` on becomes the next interval. Bytes leave as soon as `range < 2^56`, so a cut is finer than
`2^-24` of any part: the cost over `-log2(count / total)` is below 1e-6 bits a symbol, and at most one byte at the end.
Each window's string decodes alone. Zero bytes at its end are not stored; a reader past the end reads zeros.
Source: Martin 1979, "Range encoding: an algorithm for removing redundancy from a digitised message".
"""

MASK = (1 << 64) - 1
LEAST_RANGE = 1 << 56


class RangeEncoder:
    """Takes symbols; `final_bytes()` returns the bytes."""

    def __init__(self) -> None:
        self._low = 0  # the whole string as one number: Python's integers carry by themselves
        self._range = MASK
        self._num_bytes = 0

    def encode(self, start: int, count: int, total: int) -> None:
        """Code the symbol that owns `[start, start + count)` of `total < 2^32`."""
        part = self._range // total
        self._low += part * start
        self._range = part * count
        while self._range < LEAST_RANGE:
            self._low <<= 8
            self._range <<= 8
            self._num_bytes += 1

    def final_bytes(self) -> bytes:
        """The shortest string in the last interval, without zeros at its end."""
        value = shortest_in_interval(self._low, self._range)
        return value.to_bytes(self._num_bytes + 8, "big").rstrip(b"\0")


def shortest_in_interval(low: int, width: int) -> int:
    """The number in `[low, low + width)` with the most zero bytes at its end; the lowest such number."""
    for num_zeros in range(8, -1, -1):
        unit = 1 << (8 * num_zeros)
        value = -(-low // unit) * unit
        if value < low + width:
            return value
    raise AssertionError("an interval is never empty")


class RangeDecoder:
    """The symbols that a `RangeEncoder` coded, in the same order.

    For each symbol, `target(total)` gives the count that is meant, and `take` removes the symbol that owns it. A
    damaged string gives wrong symbols, which `take` or `is_at_end` may notice. But a coder without waste has symbols
    for nearly every string, so only a check sum of the symbols is certain.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 8  # where the next byte is
        self._offset = int.from_bytes(data[:8].ljust(8, b"\0"), "big")  # the value minus low
        self._low = 0
        self._range = MASK

    @property
    def state(self) -> tuple[int, int, int]:
        """Offset, low and range, 64 bits each; with `position`, another program can go on from here."""
        return self._offset, self._low, self._range

    def resume(self, offset: int, low: int, width: int, position: int) -> None:
        """Take over from another program."""
        self._offset, self._low, self._range, self.position = offset, low, width, position

    def target(self, total: int) -> int:
        """A count in `[0, total)` that the next symbol owns; what is beyond the last part belongs to the last part."""
        return min(self._offset // (self._range // total), total - 1)

    def take(self, start: int, count: int, total: int) -> bool:
        """Remove a symbol; False, with nothing removed, if the string cannot hold it because it is damaged."""
        part = self._range // total
        if not 0 <= self._offset - part * start < part * count:
            return False
        self._offset -= part * start
        self._low = (self._low + part * start) & MASK
        self._range = part * count
        while self._range < LEAST_RANGE:
            byte = self.data[self.position] if self.position < len(self.data) else 0
            self.position += 1
            self._offset = self._offset << 8 | byte
            self._low = self._low << 8 & MASK
            self._range <<= 8
        return True

    def is_at_end(self) -> bool:
        """Whether the string ends here, as an encoder would end it."""
        is_whole = len(self.data) <= self.position and self.data[-1:] != b"\0"
        return is_whole and shortest_in_interval(self._low, self._range) == self._low + self._offset
