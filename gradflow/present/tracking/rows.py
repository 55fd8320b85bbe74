"""Which numbers of an epoch are logged at which step, under which keys, and how many.

At most 1,000 values a log and 100,000 values a minute.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from gradflow.analysis.layers import stages_of
from gradflow.analysis.profile import geometric_mean, weight_sites
from gradflow.record.histograms import (
    EXPONENTS,
    GRADIENTS,
    N_BINS,
    NONFINITE,
    WEIGHTS,
    ZERO,
    Histograms,
    span,
)
from gradflow.record.trace import Table, Trace
from gradflow.training.fit import Epoch

# W&B's guidance (docs.wandb.ai/models/track/limits): beyond it its pages become slow and its
# servers refuse. TensorBoard, which sets no limit, is told the same.
VALUES_PER_LOG = 1_000
VALUES_PER_MINUTE = 100_000
# Half may come at once, the other half flows in over a minute: no minute sees more than both.
BUCKET = VALUES_PER_MINUTE // 2
REFILL_PER_SECOND = (VALUES_PER_MINUTE - BUCKET) / 60
MAX_STAGES = 50  # beyond it, names have no stages that would be worth a panel each


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


def epoch_row(epoch: Epoch) -> dict[str, float]:
    """Key -> value of the whole epoch."""
    return {
        "train/loss_epoch": epoch.train_loss,
        "train/accuracy": epoch.train_accuracy,
        "val/loss": epoch.val_loss,
        "val/accuracy": epoch.val_accuracy,
        "lr": epoch.lr,
        "epoch": epoch.index,
    }


def step_rows(epoch: Epoch, chunk: Trace | None, most: int) -> dict[int, dict[str, float]]:
    """Step -> key -> value, evenly spaced steps, so that there are at most `most` values.

    `chunk` is what was recorded in the epoch. The step itself counts as a value of its row.
    """
    recorded = [] if chunk is None else chunk.steps.tolist()
    columns = {} if chunk is None else layer_columns(chunk)
    first = epoch.step - len(epoch.step_losses)
    trained = list(range(first, epoch.step))
    n_per_step = 2 + len(columns) + (recorded not in ([], trained))
    n_steps = max(0, most) // n_per_step
    rows: dict[int, dict[str, float]] = {}
    for index in evenly(len(trained), n_steps):
        rows[trained[index]] = {"train/loss": epoch.step_losses[index]}
    for index in evenly(len(recorded), n_steps):
        row = rows.setdefault(recorded[index], {})
        row.update({key: float(values[index]) for key, values in columns.items()})
    return rows


def histogram_rows(
    histograms: Histograms, sites: Sequence[str], most: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Key -> counts and edges, log2 |x|, of the last step: each weight and its gradient.

    From the first power of two that some element has to the last; zeros have no logarithm. Evenly
    spaced layers where there are more than `most` values.
    """
    at = {site: i for i, site in enumerate(histograms.sites)}
    known = [i for i, site in enumerate(sites) if site in at]
    n_digits = max(2, len(str(len(sites) - 1)))
    rows = {}
    for i in (known[j] for j in evenly(len(known), max(0, most) // (2 * N_BINS))):
        layer = f"{i:0{n_digits}d}.{sites[i].removesuffix('.weight')}"
        for kind, name in ("weight", WEIGHTS), ("gradient", GRADIENTS):
            counts = histograms.counts[name][-1, at[sites[i]], ZERO + 1 : NONFINITE]
            part = span(counts)
            if part.stop:
                edges = np.append(EXPONENTS[part], EXPONENTS[part][-1] + 1)
                rows[f"histogram/{layer}/{kind}"] = counts[part], edges
    return rows


def n_values(rows: dict[int, dict[str, float]]) -> int:
    """The values in `rows`, the steps among them."""
    return sum(len(row) + 1 for row in rows.values())


def layer_columns(trace: Trace) -> dict[str, np.ndarray]:
    """Key -> its values (steps,): each layer in depth order, then the mean of each stage.

    Of a network with more layers than fit into a log, evenly spaced ones. A mean over a stage is
    geometric, over all its layers.
    """
    # Of frozen layers too, so that a layer keeps its number.
    sites = weight_sites(trace)
    layers = [site.removesuffix(".weight") for site in sites]
    weights = _columns(trace.select("grad_norm"), sites)
    outputs = _columns(trace.select("output_grad_norm"), layers)
    stages = _stages(layers)
    most = (VALUES_PER_LOG - 2 - 2 * len(stages)) // 2
    n_digits = max(2, len(str(len(layers) - 1)))
    columns: dict[str, np.ndarray | None] = {}
    for depth in evenly(len(layers), most):
        for kind, of_layers in ("weight", weights), ("output", outputs):
            columns[f"grad_norm/{depth:0{n_digits}d}.{layers[depth]}/{kind}"] = of_layers[depth]
    for stage, members in stages.items():
        for kind, of_layers in ("weight", weights), ("output", outputs):
            columns[f"stage/{stage}/{kind}"] = _mean_of(of_layers, members)
    return {key: values for key, values in columns.items() if values is not None}


def _mean_of(columns: list[np.ndarray | None], members: list[int]) -> np.ndarray | None:
    known = [column for i in members if (column := columns[i]) is not None]
    return geometric_mean(np.array(known)) if known else None


def _stages(layers: list[str]) -> dict[str, list[int]]:
    """Stage -> the numbers of its layers, input first; none where names tell no stages."""
    stages: dict[str, list[int]] = {}
    for i, stage in enumerate(stages_of(layers)):
        stages.setdefault(stage or "all", []).append(i)
    return stages if len(stages) <= MAX_STAGES else {}


def _columns(table: Table, sites: Sequence[str]) -> list[np.ndarray | None]:
    """The column of each site, None where the table has none."""
    at = {site: i for i, site in enumerate(table.sites)}
    return [table.values[:, at[site]] if site in at else None for site in sites]


def evenly(n: int, most: int) -> list[int]:
    """At most `most` of the indices 0 to n - 1, evenly spaced, the first and the last with them.

    >>> evenly(3, 5), evenly(9, 5), evenly(9, 0)
    ([0, 1, 2], [0, 2, 4, 6, 8], [])
    """
    if n <= most:
        return list(range(n))
    return [round(index) for index in np.linspace(0, n - 1, most).tolist()]
