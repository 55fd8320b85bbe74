"""From the epochs of one network to its sinks: within the budget, and at a small share of the time.

Everything that is left out here stands in the run's own records.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Self

import numpy as np

from gradflow.analysis.profile import (
    GRADIENT_SIZES,
    depth_profile,
    geometric_mean,
    layer_table,
    weight_sites,
    weight_table,
)
from gradflow.present import plots
from gradflow.present.tracking.rows import (
    Budget,
    epoch_row,
    histogram_rows,
    n_values,
    step_rows,
)
from gradflow.present.tracking.sink import LAYER, Cell, Sink
from gradflow.record.trace import Table, Trace
from gradflow.training.fit import Epoch

# Of the time may go into pictures; one takes about 0.3 s, as long as an epoch of small images.
PICTURE_SHARE = 0.03
# What pictures and profiles of a whole training are made of: a long one may not fit in memory.
DRAWN = tuple(dict.fromkeys(name for size in GRADIENT_SIZES.values() for name in size.needs))


class NetworkLog:
    """Tells `sinks` of the training of one network; with no sinks it does nothing.

    Per step `train/loss` and, of each layer on the way from input to output,
    `grad_norm/<NN>.<layer>/weight` and `…/output` (‖∂L/∂w‖₂ and ‖∂L/∂z‖₂), NN being the layer's
    depth, so that panels sort from input to output, and their geometric means over a stage,
    `stage/<stage>/…`. Per epoch loss, accuracy and learning rate, and where they are counted,
    `histogram/<NN>.<layer>/weight` and `…/gradient` at its last full step; seldom enough, and after
    the last epoch, the pictures `gradient/heatmap` and `gradient/depth_profile`. At the end the
    depth profiles `profile/<gradient size>`, on the axis `profile/layer`.

    `records` gives what is on disk from a step on, of which 0 is all of it: some measures, or all.
    """

    def __init__(
        self,
        name: str,
        sinks: Sequence[Sink],
        budget: Budget,
        *,
        records: Callable[[int, Sequence[str] | None], Trace | None] = lambda *_: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = name
        self._sinks = tuple(sinks)
        self._open = list(sinks)
        self._budget, self._clock, self._records = budget, clock, records
        self._undrawn: tuple[Epoch, Trace | None] | None = None
        self._drawn_at, self._draw_seconds = -np.inf, 0.0
        self._summary: dict[str, Cell] | None = None  # before `close`

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or self._summary is None:
            self._finish({}, failed=kind is not None)

    def log_epoch(self, epoch: Epoch) -> None:
        if not self._sinks:
            return
        chunk = self._records(epoch.step - len(epoch.step_losses), None)
        self._undrawn = epoch, chunk
        row = epoch_row(epoch)
        self._budget.spend(len(row) + 1)
        rows = step_rows(epoch, chunk, self._budget.left())
        self._budget.spend(n_values(rows))
        for sink in self._sinks:
            for step in sorted(rows):
                sink.log(rows[step], step)
            sink.log(row, epoch.step)
        self._log_histograms(chunk)
        if self._clock() - self._drawn_at >= self._draw_seconds / PICTURE_SHARE:
            self._draw(epoch, chunk)

    def _log_histograms(self, chunk: Trace | None) -> None:
        if chunk is None or chunk.histograms is None:
            return
        at = int(chunk.histograms.steps[-1])
        rows = histogram_rows(chunk.histograms, weight_sites(chunk), self._budget.left())
        self._budget.spend(sum(2 * len(counts) for counts, _ in rows.values()))
        for sink in self._sinks:
            for key, (counts, edges) in rows.items():
                sink.histogram(key, counts, edges, at)

    def close(self, summary: Mapping[str, Cell], *, keep_open: bool = False) -> None:
        """After the last epoch: the last pictures and the profiles, then `summary`.

        With `keep_open` the sinks wait for `end`.
        """
        if self._undrawn is not None:
            self._draw(*self._undrawn)
        profiles = self._profile_rows() if self._sinks else {}
        self._budget.spend(n_values(profiles))
        for sink in self._sinks:
            for layer, row in profiles.items():
                sink.log(row, layer, LAYER)
        self._summary = dict(summary)
        if not keep_open:
            self.end()

    def end(self, more: Mapping[str, Cell] | None = None) -> None:
        """Add to the summary, and end the sinks. More calls do nothing."""
        self._finish({**(self._summary or {}), **(more or {})})

    def _finish(self, summary: Mapping[str, Cell], *, failed: bool = False) -> None:
        """End each sink once, the others too where one fails."""
        unfinished, self._open = self._open, []
        with ExitStack() as stack:
            for sink in unfinished:
                stack.callback(sink.finish, summary, failed=failed)

    def _draw(self, epoch: Epoch, chunk: Trace | None) -> None:
        """Draw where training stands; nothing without records."""
        start = self._clock()
        pictures = {}
        if (trace := self._records(0, DRAWN)) is not None:
            table = weight_table(trace)
            pictures["gradient/heatmap"] = self._heatmap(table)
            pictures["gradient/depth_profile"] = self._profile(epoch, chunk, table)
        for key, pixels in pictures.items():
            self._budget.spend(2)
            for sink in self._sinks:
                sink.picture(key, pixels, epoch.step)
        self._undrawn = None
        self._drawn_at = self._clock()
        self._draw_seconds = self._drawn_at - start

    def _heatmap(self, table: Table) -> np.ndarray:
        ax = plots.layer_step_heatmap(table.values, table.steps, table.sites, plots.GRAD_NORM)
        said = ax.get_title()
        ax.set_title(f"{self.name}: {said[0].lower()}{said[1:]}", parse_math=False)
        return plots.to_pixels(ax)

    def _profile(self, epoch: Epoch, chunk: Trace | None, table: Table) -> np.ndarray:
        bands = {"all epochs so far": (table.sites, *3 * (geometric_mean(table.values),))}
        if chunk is not None:
            profile = depth_profile(chunk)
            bands = {f"epoch {epoch.index + 1}": (profile.sites, *3 * (profile.values,)), **bands}
        title = f"{self.name}: depth profile, from input to output"
        ax = plots.profile_bands_plot(bands, plots.GRAD_NORM, title)
        return plots.to_pixels(ax)

    def _profile_rows(self) -> dict[int, dict[str, float]]:
        """Layer -> key -> the geometric mean over all recorded steps; nothing where it is NaN."""
        rows: dict[int, dict[str, float]] = {}
        if (trace := self._records(0, DRAWN)) is None:
            return rows
        for size in GRADIENT_SIZES:
            try:
                mean = geometric_mean(layer_table(trace, size).values)
            except (KeyError, ValueError):  # not recorded, or a network without depth
                continue
            for layer in np.flatnonzero(np.isfinite(mean)).tolist():
                rows.setdefault(layer, {})[f"profile/{size}"] = float(mean[layer])
        return rows
