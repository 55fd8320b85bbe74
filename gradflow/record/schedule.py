"""Schedules: at which optimizer steps to record."""

import math
import time
from collections import deque
from collections.abc import Callable
from numbers import Integral
from statistics import median

Schedule = Callable[[int], bool]


def every(n_steps: int) -> Schedule:
    """Record at the steps 0, n, 2n, …

    >>> [step for step in range(10) if every(4)(step)]
    [0, 4, 8]
    """
    _check_whole("every", n_steps)
    return lambda step: step % n_steps == 0


def _check_whole(name: str, n: object) -> None:
    if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
        raise ValueError(f"Expected `{name}` to be a whole number of at least 1, but got {n!r}.")


# As many as the window of dead channels holds. In the first steps the weights move most, and of a
# short run, as one makes to look at, nothing is left out.
N_FULL_AT_FIRST = 16

DEFAULT_CADENCE = 8


class Cadence:
    """Which of the recorded steps are full, so that what is dear is measured too.

    The first 16, and then every n-th. It depends on the number of the recorded step alone: networks
    and seeds that are recorded at the same steps have the same full steps.

    >>> [index for index in range(40) if Cadence(8).is_full(index)][14:]
    [14, 15, 16, 24, 32]
    """

    def __init__(self, n_recorded: int) -> None:
        _check_whole("cadence", n_recorded)
        self._n = n_recorded

    def is_full(self, index: int) -> bool:
        """Of the recorded step of this number, counted from 0."""
        return index < N_FULL_AT_FIRST or index % self._n == 0


class MaxOverhead:
    """Record as often as a share of the training time allows, found from measured step times.

    After the first step, which is always recorded, it records one step in `PROBE` until it has
    timed `ENOUGH` steps with and without. From their medians follow the price of recording a step,
    and the interval that keeps it below `share`; both are measured on. Full steps are dearer, and
    count by their part in the recorded ones. Steps are timed from the end of one optimizer step to
    the end of the next, on the host: on a GPU that is right in the long run, where the host waits
    for the device.

    >>> schedule = MaxOverhead(0.02)
    >>> for step in range(60):  # recording takes 9 % of a step
    ...     is_recorded = schedule(step)
    ...     schedule.saw_step(is_recorded, 1.09 if is_recorded else 1.0)
    >>> schedule.interval
    5
    >>> round(schedule.price, 3)
    0.09
    """

    PROBE = 8
    ENOUGH = 4
    MEMORY = 64  # step times; also the longest stretch without an unrecorded step to compare with

    def __init__(self, share: float) -> None:
        if not 0 < share < 1:
            raise ValueError(
                f"Expected a share of the training time between 0 and 1, but got {share!r}."
            )
        self.share = share
        self._recorded: dict[bool, deque[float]] = {  # by whether the step was full
            is_full: deque(maxlen=self.MEMORY) for is_full in (True, False)
        }
        self._were_full: deque[bool] = deque(maxlen=self.MEMORY)
        self._bare: deque[float] = deque(maxlen=self.MEMORY)
        self._flush = 0.0  # seconds per recorded step
        self._n_flushed = 0
        self._next: int | None = None
        self._total_seconds = 0.0
        self._n_recorded = 0
        self._n_since_bare = 0
        self._is_first = True

    def __call__(self, step: int) -> bool:
        """Whether to record this step. To be asked once per step."""
        if self._next is None or step >= self._next:
            if self._n_since_bare >= self.MEMORY:
                self._n_since_bare = 0
                return False  # so that the price stays known
            self._next = step + self.interval
            return True
        return False

    def saw_step(self, is_recorded: bool, seconds: float, is_full: bool = True) -> None:
        """How long the step took; of a recorded one, whether it was full."""
        self._total_seconds += seconds
        self._n_recorded += is_recorded
        self._n_since_bare = self._n_since_bare + 1 if is_recorded else 0
        if self._is_first:  # it warms up: no step like the others
            self._is_first = False
            return
        if is_recorded:
            self._were_full.append(is_full)
        (self._recorded[is_full] if is_recorded else self._bare).append(seconds)

    def saw_flush(self, n_steps: int, seconds: float) -> None:
        """How long it took to bring so many recorded steps to the host and to write them."""
        self._total_seconds += seconds
        self._flush = (self._flush * self._n_flushed + seconds) / (self._n_flushed + n_steps)
        self._n_flushed += n_steps

    @property
    def price(self) -> float:
        """What recording a step costs, in unrecorded steps; NaN until it is known."""
        if min(len(self._were_full), len(self._bare)) < self.ENOUGH:
            return math.nan
        share = {True: sum(self._were_full) / len(self._were_full)}
        share[False] = 1 - share[True]
        recorded = sum(share[sort] * median(of_sort) for sort, of_sort in self._recorded.items()
                       if of_sort)  # fmt: skip
        return max(0.0, (recorded + self._flush) / median(self._bare) - 1)

    @property
    def interval(self) -> int:
        """Steps from one recorded step to the next."""
        price = self.price
        return self.PROBE if math.isnan(price) else max(1, math.ceil(price / self.share))

    @property
    def overhead(self) -> float:
        """The share of the training time that recording has taken so far; NaN until known."""
        if math.isnan(self.price):
            return math.nan
        spent = self._n_recorded * self.price * median(self._bare)
        return spent / (self._total_seconds - spent)


class Stopwatch:
    """Tells a schedule that asks for it how long steps take, with and without recording."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule if isinstance(schedule, MaxOverhead) else None
        self._last: float | None = None

    def step(self, is_recorded: bool, is_full: bool) -> None:
        if self._schedule is not None:
            now = time.perf_counter()
            if self._last is not None:
                self._schedule.saw_step(is_recorded, now - self._last, is_full)
            self._last = now

    def flushed(self, n_steps: int, seconds: float) -> None:
        if self._schedule is not None:
            self._schedule.saw_flush(n_steps, seconds)
            self._last = None  # the flush must not count as a long step
