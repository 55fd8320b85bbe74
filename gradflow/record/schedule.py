"""Schedules: at which optimizer steps to record."""

from collections.abc import Callable
from numbers import Integral

Schedule = Callable[[int], bool]


def every(n_steps: int) -> Schedule:
    """Record at the steps 0, n, 2n, …

    >>> [step for step in range(10) if every(4)(step)]
    [0, 4, 8]
    """
    if isinstance(n_steps, bool) or not isinstance(n_steps, Integral) or n_steps < 1:
        raise ValueError(
            f"Expected `every` to be a whole number of at least 1, but got {n_steps!r}."
        )
    return lambda step: step % n_steps == 0
