"""From the epochs of one network to its sinks: within the budget, and at a small share of the time.

Everything that is left out here stands in the run's own records.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import numpy as np

from gradflow.analysis.profile import depth_profile, weight_sites
from gradflow.present import plots
from gradflow.present.tracking.budget import Budget
from gradflow.present.tracking.rows import epoch_row, histogram_rows, n_values, step_rows
from gradflow.present.tracking.running import RunningTrace
from gradflow.present.tracking.sink import LAYER, Cell, Sink
from gradflow.record.trace import Table, Trace
from gradflow.training.fit import Epoch

IMAGE_DPI = 100  # 700 pixels wide: trackers show a picture at 400 to 900
# Of the time may go into pictures; one takes about 0.3 s, as long as an epoch of small images.
PICTURE_SHARE = 0.03


class NetworkLog:
    """Tells `sinks` of the training of one network; with no sinks it does nothing.

    Per step `train/loss` and, of each layer on the way from input to output,
    `grad_norm/<NN>.<layer>/weight` and `…/output` (‖∂L/∂w‖₂ and ‖∂L/∂z‖₂), NN being the layer's
    depth, so that panels sort from input to output, and their geometric means over a stage,
    `stage/<stage>/…`. Per epoch loss, accuracy and learning rate, and where they are counted,
    `histogram/<NN>.<layer>/weight` and `…/gradient` at its last full step; seldom enough, and after
    the last epoch, the pictures `gradient/heatmap` and `gradient/depth_profile`. At the end the
    depth profiles `profile/<gradient size>`, on the axis `profile/layer`.

    `earlier` gives what was recorded before a resume.
    """

    def __init__(
        self,
        name: str,
        sinks: Sequence[Sink],
        budget: Budget,
        *,
        earlier: Callable[[], Trace | None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = name
        self._sinks = tuple(sinks)
        self._open = list(sinks)
        self._budget, self._clock, self._earlier = budget, clock, earlier
        self._so_far = RunningTrace(plots.MAX_COLUMNS)
        self._last: tuple[Epoch, Trace | None] | None = None
        self._drawn_at, self._draw_seconds = -np.inf, 0.0
        self._is_drawn = True
        self._is_closed = False
        self._summary: dict[str, Cell] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None or not self._is_closed:
            self._finish({}, failed=kind is not None)

    @property
    def has_sinks(self) -> bool:
        return bool(self._sinks)

    def log_epoch(self, epoch: Epoch, chunk: Trace | None) -> None:
        """`chunk` is what was recorded in the epoch."""
        if not self._sinks:
            return
        self._remember(epoch, chunk)
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
            self._draw()

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
        if not self._is_drawn:
            self._draw()
        profiles = self._profile_rows() if self._sinks else {}
        self._budget.spend(n_values(profiles))
        for sink in self._sinks:
            for layer, row in profiles.items():
                sink.log(row, layer, LAYER)
        self._is_closed, self._summary = True, dict(summary)
        if not keep_open:
            self.end()

    def end(self, more: Mapping[str, Cell] | None = None) -> None:
        """Add to the summary, and end the sinks. More calls do nothing."""
        self._finish({**self._summary, **(more or {})})

    def _finish(self, summary: Mapping[str, Cell], *, failed: bool = False) -> None:
        """End each sink once, the others too where one fails."""
        unfinished, self._open = self._open, []
        with ExitStack() as stack:
            for sink in unfinished:
                stack.callback(sink.finish, summary, failed=failed)

    def _remember(self, epoch: Epoch, chunk: Trace | None) -> None:
        if self._last is None and epoch.index > 0:
            before = self._earlier()
            if before is not None:
                self._so_far.add(before, before=epoch.step - len(epoch.step_losses))
        if chunk is not None:
            self._so_far.add(chunk)
        self._last, self._is_drawn = (epoch, chunk), False

    def _draw(self) -> None:
        """Draw where training stands; nothing without records."""
        assert self._last is not None
        start = self._clock()
        epoch, chunk = self._last
        pictures = {}
        if self._so_far.weights.table is not None:
            pictures["gradient/heatmap"] = self._heatmap(self._so_far.weights.table)
            pictures["gradient/depth_profile"] = self._profile(epoch, chunk)
        for key, pixels in pictures.items():
            self._budget.spend(2)
            for sink in self._sinks:
                sink.picture(key, pixels, epoch.step)
        self._is_drawn = True
        self._drawn_at = self._clock()
        self._draw_seconds = self._drawn_at - start

    def _heatmap(self, table: Table) -> np.ndarray:
        every = self._so_far.weights.every
        ax = plots.layer_step_heatmap(table.values, table.steps, table.sites, plots.GRAD_NORM)
        thinned = f", 1 of {every}" if every > 1 else ""
        ax.set_title(f"{self.name}: every layer at every recorded step{thinned}", parse_math=False)
        return plots.to_pixels(plots.figure_of(ax), IMAGE_DPI)

    def _profile(self, epoch: Epoch, chunk: Trace | None) -> np.ndarray:
        so_far = self._so_far.weight_profile
        bands = {"all epochs so far": (so_far.sites, *3 * (so_far.values,))}
        if chunk is not None and len(chunk):
            profile = depth_profile(chunk)
            bands = {f"epoch {epoch.index + 1}": (profile.sites, *3 * (profile.values,)), **bands}
        title = f"{self.name}: depth profile, from input to output"
        ax = plots.profile_bands_plot(bands, plots.GRAD_NORM, title)
        return plots.to_pixels(plots.figure_of(ax), IMAGE_DPI)

    def _profile_rows(self) -> dict[int, dict[str, float]]:
        """Layer -> key -> the geometric mean over all recorded steps; nothing where it is NaN."""
        rows: dict[int, dict[str, float]] = {}
        for size, mean in self._so_far.sizes.items():
            for layer, value in enumerate(mean.values.tolist()):
                if np.isfinite(value):
                    rows.setdefault(layer, {})[f"profile/{size}"] = value
        return rows
