"""A word in time: what in the records of a training in progress asks for a look, once per kind.

Rules on what was recorded, each with its number, its threshold and what to do. They describe and do
not judge: the verdict comes when the training has ended.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gradflow.analysis.layers import PATH_KINDS
from gradflow.analysis.numerals import plain
from gradflow.analysis.profile import columns, geometric_mean
from gradflow.record.trace import Table, Trace

N_STEPS = 10  # recorded steps that a rule looks at: one batch is no news
FIRST_STEPS = 10  # of a training, left out: Adam's moments and running statistics start there
DEAD = 0.5  # share of the channels of a layer; half of them are lost capacity
LARGEST_RATIO = 0.1  # ‖Δw‖ / ‖w‖ of a step: about 1e-3 is usual, at 0.1 ten steps replace a weight
SMALLEST_RATIO = 1e-6  # it would take a million steps to replace a weight
LOW_RATE = 0.1  # of the highest learning rate so far: below it small updates are meant
ADAM_EPSILON = 1e-8  # PyTorch's default, which gradflow trains with
N_EPOCHS = 3  # after which the loss must have fallen
LEAST_FALL = 0.01  # of the loss of the first epoch


@dataclass(frozen=True)
class Alarm:
    """One thing to look at: its kind, what was seen beside its threshold, and what to do."""

    kind: str
    seen: str
    advice: str

    def __str__(self) -> str:
        return f"{self.seen}. {self.advice}"


class Alarms:
    """Says each kind once. Give it the records as they come, and the losses, in order.

    `eps` is that of Adam; None for another optimizer. `trainable` names the parameters that should
    receive a gradient; those that are frozen on purpose do not. `losses` are of epochs before.
    """

    def __init__(
        self,
        eps: float | None = ADAM_EPSILON,
        trainable: Collection[str] = (),
        losses: Sequence[float] = (),
    ) -> None:
        self._eps = eps
        self._trainable = trainable
        self._losses = list(losses)
        self._said: set[str] = set()
        self._highest_lr = 0.0

    def records(self, trace: Trace, lr: float | None = None) -> list[Alarm]:
        """What is new in the latest records; with `lr` small updates may be meant."""
        self._highest_lr = max(self._highest_lr, lr or 0.0)
        is_slow = lr is not None and lr < LOW_RATE * self._highest_lr
        found = [
            *_nonfinite(trace),
            *_no_gradient(trace, self._trainable),
            *_dead(trace),
            *_large(trace),
            *(() if is_slow else _small(trace)),
            *(() if self._eps is None else _at_epsilon(trace, self._eps)),
        ]
        return self._new(found)

    def epoch(self, train_loss: float) -> list[Alarm]:
        """What is new after an epoch of this mean training loss."""
        self._losses.append(train_loss)
        return self._new(_of_losses(self._losses))

    def _new(self, found: Iterable[Alarm]) -> list[Alarm]:
        new = [one for one in found if one.kind not in self._said]
        self._said |= {one.kind for one in new}
        return new


def _nonfinite(trace: Trace) -> Iterator[Alarm]:
    """A step that a GradScaler skipped is how mixed precision finds its scale."""
    found = [one for one in trace.nonfinite() if one.first_step not in trace.skipped_steps]
    if found:
        first = found[0]
        yield Alarm(
            "not finite",
            f"NaN or inf first at {first.site}, step {first.first_step} ({first.measure}: "
            f"{first.count} values)",
            "Look at that layer and its input, and lower the learning rate or clip gradients.",
        )


def _no_gradient(trace: Trace, trainable: Collection[str]) -> Iterator[Alarm]:
    """Zero, or of a parameter that should have one none, at every step; others have a gradient."""
    table = _latest(trace, "grad_norm", PATH_KINDS, every_site=True)
    if table is None or not (table.values > 0).any():
        return
    bad = {one.site for one in trace.nonfinite()}
    missing = [site in trainable and site not in bad for site in table.sites]
    gone = ((table.values == 0) | (np.isnan(table.values) & missing)).all(axis=0)
    if gone.any():
        yield Alarm(
            "no gradient",
            f"{_layers(table.sites, gone)} without any gradient for {len(table.steps)} recorded "
            f"steps (0, threshold above 0)",
            "Look for a detach(), a dead activation behind it, or an output that no loss uses.",
        )


def _dead(trace: Trace) -> Iterator[Alarm]:
    """Off for every image of 16 recorded steps: one batch has not seen enough of them."""
    table = _latest(trace, "output_dead_window", ("activation",))
    if table is None or not np.isfinite(table.values).any():
        return
    last = np.flatnonzero(np.isfinite(table.values).any(axis=1))[-1]
    share = np.nan_to_num(table.values[last])
    worst = int(share.argmax())
    if share[worst] > DEAD:
        yield Alarm(
            "dead channels",
            f"{share[worst]:.0%} of the channels of {table.sites[worst]} are off for every image "
            f"(threshold {DEAD:.0%})",
            "Lower the learning rate, check the initialisation, or use a leaky activation.",
        )


def _large(trace: Trace) -> Iterator[Alarm]:
    # The first steps are news too: ten of them replace the weights.
    table = _latest(trace, "relative_update", PATH_KINDS, first=0)
    advice = "Lower the learning rate of that layer."
    yield from _ratio(table, 1, LARGEST_RATIO, "large updates", advice)


def _small(trace: Trace) -> Iterator[Alarm]:
    table = _latest(trace, "relative_update", PATH_KINDS)
    advice = "Raise the learning rate, or look why so small a gradient arrives there."
    yield from _ratio(table, -1, SMALLEST_RATIO, "small updates", advice)


def _ratio(table: Table | None, sign: int, limit: float, kind: str, advice: str) -> Iterator[Alarm]:
    """‖Δw‖ / ‖w‖ above the limit (`sign` 1) or below it (-1)."""
    if table is None:
        return
    ratio = geometric_mean(table.values)
    beyond = np.where(np.isfinite(ratio), sign * (ratio - limit), -np.inf)
    worst = int(beyond.argmax())
    if beyond[worst] > 0:
        yield Alarm(
            kind,
            f"A step changes {table.sites[worst]} by {plain(ratio[worst])} of its size (threshold "
            f"{limit:g})",
            advice,
        )


def _at_epsilon(trace: Trace, eps: float) -> Iterator[Alarm]:
    """rms of the gradient below ε: √v̂ / (√v̂ + ε), the share of a step that is left, is a half.

    The share itself, as recorded, is a mean over elements, and low where most see padding alone.
    """
    table = _latest(trace, "grad_norm", PATH_KINDS)
    if table is None:
        return
    sizes = dict(zip(trace.sites, trace.sizes, strict=True))
    rms = geometric_mean(table.values) / np.sqrt([sizes[site] for site in table.sites])
    if np.isfinite(rms).any() and rms[worst := int(np.nanargmin(rms))] < eps:
        yield Alarm(
            "at epsilon",
            f"The gradients of {table.sites[worst]} are as small as Adam's ε: rms "
            f"{plain(rms[worst])} (threshold {eps:g})",
            "Lower eps, for example to 1e-12, or scale the loss.",
        )


def _of_losses(losses: Sequence[float]) -> Iterator[Alarm]:
    if len(losses) > N_EPOCHS and not min(losses[1:]) < (1 - LEAST_FALL) * losses[0]:
        yield Alarm(
            "loss",
            f"The training loss is {plain(losses[-1], 4)} after {len(losses)} epochs and was "
            f"{plain(losses[0], 4)} after the first (threshold: {LEAST_FALL:.0%} less)",
            "Look at the learning rate first, then at labels and normalisation.",
        )


def _latest(
    trace: Trace,
    measure: str,
    kinds: tuple[str, ...],
    *,
    first: int = FIRST_STEPS,
    every_site: bool = False,
) -> Table | None:
    """The last `N_STEPS` recorded steps from step `first` on; None with fewer.

    Where a training begins and `first` is 0, its first steps. With `every_site` the table has the
    sites where nothing was taken too.
    """
    try:
        table = trace.select(measure, kinds)
    except KeyError:  # not recorded
        return None
    if every_site:
        sites = tuple(s for s, kind in zip(trace.sites, trace.kinds, strict=True) if kind in kinds)
        table = Table(trace.steps, sites, columns(trace, measure, sites))
    use = np.flatnonzero(table.steps >= first)
    use = use[:N_STEPS] if first == 0 and table.steps[0] == 0 else use[-N_STEPS:]
    if len(use) < N_STEPS or not table.sites:
        return None
    return Table(table.steps[use], table.sites, table.values[use])


def _layers(sites: Sequence[str], chosen: np.ndarray) -> str:
    names = [site for site, is_chosen in zip(sites, chosen, strict=True) if is_chosen]
    return names[0] + (f" and {len(names) - 1} more layers" if len(names) > 1 else "")
