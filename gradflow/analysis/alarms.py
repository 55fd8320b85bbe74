"""A word in time: what in the records of a training in progress asks for a look, once per kind.

Rules on what was recorded, each with its number, its threshold and what to do. They describe and do
not judge: the verdict comes when the training has ended.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gradflow.analysis.layers import PATH_KINDS
from gradflow.analysis.numerals import plain
from gradflow.analysis.profile import geometric_mean
from gradflow.record import Trace
from gradflow.record.trace import Table

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
    """Says each kind once. Give it what each epoch recorded, in order.

    `eps` is that of Adam; None for another optimizer.
    """

    def __init__(self, eps: float | None = ADAM_EPSILON) -> None:
        self._eps = eps
        self._said: set[str] = set()
        self._losses: list[float] = []
        self._highest_lr = 0.0

    def look(self, records: Trace | None, train_loss: float, lr: float) -> list[Alarm]:
        """What is new since the last call; `records` is None where nothing was recorded."""
        self._losses.append(train_loss)
        self._highest_lr = max(self._highest_lr, lr)
        found = list(_of_losses(self._losses))
        if records is not None:
            is_slow = lr < LOW_RATE * self._highest_lr
            found += of_records(records, self._eps, may_be_slow=is_slow)
        new = {one.kind: one for one in reversed(found) if one.kind not in self._said}
        self._said |= new.keys()
        return [one for one in found if new.get(one.kind) is one]


def of_records(
    trace: Trace, eps: float | None = ADAM_EPSILON, *, may_be_slow: bool = False
) -> Iterator[Alarm]:
    """What a part of the records shows; with `may_be_slow` small updates are meant."""
    yield from _nonfinite(trace)
    yield from _no_gradient(trace)
    yield from _dead(trace)
    yield from _ratio(trace, may_be_slow)
    if eps is not None:
        yield from _at_epsilon(trace, eps)


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


def _no_gradient(trace: Trace) -> Iterator[Alarm]:
    """Exactly zero at every step, while other layers have a gradient."""
    table = _latest(trace, "grad_norm", PATH_KINDS)
    if table is None or not (table.values > 0).any():
        return
    gone = (table.values == 0).all(axis=0)
    if gone.any():
        yield Alarm(
            "no gradient",
            f"{_layers(table.sites, gone)} without any gradient for {len(table.steps)} recorded "
            f"steps (0, threshold above 0)",
            "Look for a detach(), a dead activation behind it, or an output that no loss uses.",
        )


def _dead(trace: Trace) -> Iterator[Alarm]:
    for measure in ("output_dead_window", "output_dead_fraction"):
        table = _latest(trace, measure, ("activation",))
        if table is None or not np.isfinite(table.values).any():
            continue
        share = np.nanmean(table.values, axis=0, where=np.isfinite(table.values))
        worst = int(np.nanargmax(share))
        if share[worst] > DEAD:
            yield Alarm(
                "dead channels",
                f"{share[worst]:.0%} of the channels of {table.sites[worst]} are off for every "
                f"image (threshold {DEAD:.0%})",
                "Lower the learning rate, check the initialisation, or use a leaky activation.",
            )
        return


def _ratio(trace: Trace, may_be_slow: bool) -> Iterator[Alarm]:
    table = _latest(trace, "relative_update", PATH_KINDS)
    if table is None:
        return
    ratio = geometric_mean(table.values)
    known = np.isfinite(ratio)
    if not known.any():
        return
    high, low = int(np.nanargmax(ratio)), int(np.nanargmin(ratio))
    if ratio[high] > LARGEST_RATIO:
        yield Alarm(
            "large updates",
            f"A step changes {table.sites[high]} by {plain(ratio[high])} of its size (threshold "
            f"{LARGEST_RATIO:g})",
            "Lower the learning rate of that layer.",
        )
    if ratio[low] < SMALLEST_RATIO and not may_be_slow:
        yield Alarm(
            "small updates",
            f"A step changes {table.sites[low]} by {plain(ratio[low])} of its size (threshold "
            f"{SMALLEST_RATIO:g})",
            "Raise the learning rate, or look why so small a gradient arrives there.",
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


def _latest(trace: Trace, measure: str, kinds: tuple[str, ...]) -> Table | None:
    """The last `N_STEPS` recorded steps after the first of a training; None with fewer."""
    if measure not in trace.values:
        return None
    table = trace.select(measure, kinds)
    use = np.flatnonzero(table.steps >= FIRST_STEPS)[-N_STEPS:]
    if len(use) < N_STEPS or not table.sites:
        return None
    return Table(table.steps[use], table.sites, table.values[use])


def _layers(sites: Sequence[str], chosen: np.ndarray) -> str:
    names = [site for site, is_chosen in zip(sites, chosen, strict=True) if is_chosen]
    return names[0] + (f" and {len(names) - 1} more layers" if len(names) > 1 else "")
