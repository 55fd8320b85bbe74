"""Schedules: at which optimizer steps to record."""

from collections.abc import Callable

Schedule = Callable[[int], bool]


def every(n_steps: int) -> Schedule:
    """Record at the steps 0, n, 2n, …

    >>> [step for step in range(10) if every(4)(step)]
    [0, 4, 8]
    """
    if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 1:
        raise ValueError(f"Expected `every` to be a whole number of at least 1, but got {n_steps}.")
    return lambda step: step % n_steps == 0
