"""Showing the latest records while a model trains, for a bounded share of its time."""

import time
from collections.abc import Callable

from gradflow.record.readable import NotTaken
from gradflow.record.trace import Trace

EVERY_SECONDS = 0.5  # faster than one reads
MAX_SHARE = 0.005  # of the time, so that it stays well below a hundredth

Show = Callable[[Trace], None]


class Watchers:
    """Calls functions with the latest records, and the less often, the longer that takes."""

    def __init__(self, not_taken: NotTaken) -> None:
        self._not_taken = not_taken
        self._shows: list[Show] = []
        self._next = 0.0

    def add(self, show: Show) -> None:
        self._shows.append(show)
        self._next = 0.0

    def is_due(self) -> bool:
        return bool(self._shows) and time.perf_counter() >= self._next

    def tell(self, read: Callable[[], Trace | None]) -> None:
        """Show what `read` gives; its time counts. Who raises is not called again."""
        start = time.perf_counter()
        trace = read() if self._shows else None
        for show in self._shows[:]:
            if trace is None:
                break
            try:
                show(trace)
            except Exception as error:
                self._shows.remove(show)
                self._not_taken.failed("what is shown", error)
        now = time.perf_counter()
        self._next = now + max(EVERY_SECONDS, (now - start) / MAX_SHARE)
