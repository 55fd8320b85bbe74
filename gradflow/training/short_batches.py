"""Which steps of a run saw few images: their gradients are noisier, and would stripe a heat map."""

import numpy as np

from gradflow.record.trace import Table
from gradflow.training.config import TrainConfig
from gradflow.training.rundir import RunDir

SHORT = 0.5  # of a full batch: below it the noise of a gradient is larger by more than √2


def short_last_batch(config: TrainConfig, n_train: int) -> tuple[int, int] | None:
    """(batches per epoch, images in the last), where the last holds less than half of the others.

    >>> short_last_batch(TrainConfig(batch_size=64), 64 * 3 + 7)
    (4, 7)
    """
    n_full, n_last = divmod(n_train, config.batch_size)
    is_short = n_full and 2 <= n_last < SHORT * config.batch_size  # one image alone is left out
    return (n_full + 1, n_last) if is_short and config.batches_per_step == 1 else None


def of_run(run: RunDir) -> tuple[int, int] | None:
    """The same for the trainings of a run."""
    return short_last_batch(run.config(), run.data()["split"]["counts"]["train"])


def without_short(table: Table, short: tuple[int, int] | None) -> Table:
    """The table without the steps of short batches; optimizer steps are counted from 0."""
    if short is None:
        return table
    keep = np.asarray(table.steps) % short[0] != short[0] - 1
    return Table(table.steps[keep], table.sites, table.values[keep])
