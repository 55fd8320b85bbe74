"""How much a tracker is told: at most 1,000 values a log and 100,000 values a minute."""

import time
from collections.abc import Callable

# W&B's guidance (docs.wandb.ai/models/track/limits): beyond it its pages become slow and its
# servers refuse. TensorBoard, which sets no limit, is told the same.
VALUES_PER_LOG = 1_000
VALUES_PER_MINUTE = 100_000
# Half may come at once, the other half flows in over a minute: no minute sees more than both.
BUCKET = VALUES_PER_MINUTE // 2
REFILL_PER_SECOND = (VALUES_PER_MINUTE - BUCKET) / 60


class Budget:
    """A bucket of values that refills by the clock. One is shared by all networks of a command."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._level = float(BUCKET)
        self._at = clock()

    def left(self) -> int:
        """How many values may be logged now; below zero after `spend` took more than there were."""
        now = self._clock()
        self._level = min(BUCKET, self._level + (now - self._at) * REFILL_PER_SECOND)
        self._at = now
        return int(self._level // 1)

    def spend(self, n_values: int) -> None:
        """Count `n_values` as logged. What must not be missing may overdraw, and others wait."""
        self.left()  # up to this moment
        self._level -= n_values
