"""Sink: what a tracker can be told. One file beside this one for each tracker."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

# The two horizontal axes.
STEP = "trainer/step"  # optimizer steps done before
LAYER = "profile/layer"  # counted from the input, from 0: the number in the keys of `grad_norm`

Cell = str | float


class Sink(Protocol):
    """One run in a tracker. Keys are those of docs/tracking.md, the same for every tracker."""

    def log(self, values: Mapping[str, float], at: int, axis: str = STEP) -> None:
        """Numbers at one place of an axis; NaN and inf as they are."""

    def histogram(self, key: str, counts: np.ndarray, edges: np.ndarray, at: int) -> None:
        """`counts` (bins,) of what lies between `edges` (bins + 1,), after `at` steps."""

    def picture(self, key: str, pixels: np.ndarray, at: int) -> None:
        """`pixels` (height, width, 3) uint8, after `at` optimizer steps."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """A table of the whole run."""

    def finish(self, summary: Mapping[str, Cell], *, failed: bool = False) -> None:
        """Add `summary` to what stands for the whole run, and end it."""
