"""Straight lines by least squares."""

from typing import Protocol

from numpy.typing import NDArray
from scipy.stats import linregress


class Line(Protocol):
    """`y = intercept + slope · x`, as SciPy fits it.

    Attributes:
        rvalue: Pearson's correlation of x and y.
        stderr, intercept_stderr: standard errors of the slope and the intercept.
    """

    slope: float
    intercept: float
    rvalue: float
    stderr: float
    intercept_stderr: float


def straight_line(x: NDArray, y: NDArray) -> Line:
    """The least-squares line through points `[N]`."""
    return linregress(x, y)  # pyright: ignore[reportReturnType]  # SciPy makes its class when it is imported
