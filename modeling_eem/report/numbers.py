"""Numbers in a form that people can read."""

import math
import re

_DECIMALS = re.compile(r"\.(\d+)[f%]$")
_LARGE = 1e6  # from here on, decimals are meaningless
_HUGE = 1e15  # from here on, digits are meaningless


def readable(value: float | int, spec: str = "") -> str:
    """A number in a format specification, but never with meaningless digits.

    Without a specification integers have thousands separators and floats three decimals. A float that is too large for
    decimals, or so small that it would be shown as zero, has two significant digits and a power of ten: "3.0e+08",
    "4.1e-05". With a `z`, as in "+z.4f", a small one is shown as zero, without a minus: for columns of one width.
    """
    if not math.isfinite(value):
        return str(value)
    spec = spec or (".3f" if isinstance(value, float) else ",")
    text = format(value, spec)
    sign = "+" if spec.startswith("+") else ""
    decimals = _DECIMALS.search(spec)
    if abs(value) >= _HUGE or (decimals and int(decimals[1]) > 0 and abs(value) >= _LARGE):
        return format(value, f"{sign}.1e")
    if value and decimals and "z" not in spec and not any(digit in text for digit in "123456789"):
        return format(value, f"{sign}.1e")
    return text


def quantity(value: float, unit: str) -> str:
    """A number of at least 0 with three digits and a unit prefix: "982 B", "12.3 MB", "4.56 TFLOP"."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if value < 999.5 or prefix == "E":
            break
        value /= 1000
    digits = f"{value:.0f}" if not prefix else f"{value:.{max(0, 2 - int(value >= 9.995) - int(value >= 99.95))}f}"
    return f"{digits} {prefix}{unit}"


def duration(seconds: float) -> str:
    """A time in the units that people would use: "0.5 s", "42 s", "3 min 20 s", "1 h 5 min", "2 d 3 h"."""
    if not 0 <= seconds < math.inf:
        raise ValueError(f"seconds must be a finite number of at least 0, not {seconds}.")
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    steps = (("min", 60, "s", 1, 3600), ("h", 3600, "min", 60, 86400), ("d", 86400, "h", 3600, math.inf))
    unit, size, small_unit, small, _ = next(step for step in steps if round(seconds / step[3]) * step[3] < step[4])
    whole, rest = divmod(round(seconds / small), size // small)
    return f"{whole:,} {unit}" + (f" {rest} {small_unit}" if rest else "")
