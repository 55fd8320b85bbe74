"""A training as it goes: the gradients by depth, and a word in time, on a terminal.

One picture for three places: below the bar of `gradflow train`, in a loop of one's own under
`gradflow.watch`, and in `gradflow watch FOLDER` from the records on disk.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from gradflow.analysis.alarms import Alarm, Alarms
from gradflow.analysis.layers import PATH_KINDS, main_path
from gradflow.analysis.numerals import factor, plain
from gradflow.analysis.profile import GRADIENT_SIZES, layer_table, typical
from gradflow.analysis.rates import Rate
from gradflow.present.terminal_plot import can_show_braille, depth_picture
from gradflow.record.trace import Trace

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from gradflow.record import Recorder

LAST_STEPS = 8  # recorded steps in the picture: one batch alone is rough
ROWS = 3  # of the picture: a fifth of a small terminal
MOST = 3  # networks side by side


@dataclass(frozen=True)
class Moment:
    """What the latest records of one network say."""

    step: int
    size: str
    values: np.ndarray  # (layers,), input first
    update: float  # the largest ‖Δw‖ / ‖w‖ of a weight, NaN where it was not recorded
    of: str  # that weight
    loss: float | None = None


def moment(trace: Trace, loss: float | None = None) -> Moment | None:
    """Over the last recorded steps; None where there is no depth or no gradient."""
    try:
        main_path(trace)
    except ValueError:
        return None
    for size in GRADIENT_SIZES:
        try:
            values = typical(layer_table(trace, size).values[-LAST_STEPS:])
        except KeyError:  # not recorded
            continue
        if np.isfinite(values).any():
            return Moment(int(trace.steps[-1]), size, values, *_largest_update(trace), loss)
    return None


def _largest_update(trace: Trace) -> tuple[float, str]:
    """The largest update of a weight: a bias begins near 0, and every step is large beside it."""
    try:
        table = trace.select("relative_update", PATH_KINDS)
    except KeyError:
        return math.nan, ""
    known = np.where(np.isfinite(table.values), table.values, -1.0)
    if not known.size or known.max() < 0:
        return math.nan, ""
    worst = int(known.max(axis=0).argmax())
    return float(known[:, worst].max()), table.sites[worst]


def lines(moments: Mapping[str, Moment], *, width: int = 76, braille: bool = True) -> list[str]:
    """The profiles side by side on one axis, and a line of numbers for each network."""
    if not moments:
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = {name: np.log10(one.values) for name, one in moments.items()}
    size = GRADIENT_SIZES[next(iter(moments.values())).size]
    said = f"{size.symbol} by depth, input to output ({size.unit})"
    drawn = depth_picture(logs, said, braille=braille, width=min(width - 1, 100), rows=ROWS)
    return [*drawn, *(f"{name}  {_numbers(one)}" for name, one in moments.items())]


def _numbers(one: Moment) -> str:
    """So short that most of it stands in 80 columns."""
    said = [f"step {one.step}"]
    if one.loss is not None:
        said.append(f"loss {plain(one.loss, 3)}")
    change = Rate(one.values).decades
    if math.isfinite(change):
        said.append(f"first/last {factor(change, 2)}x")
    if math.isfinite(one.update):
        said.append(f"update up to {plain(one.update, 2)} ({one.of})")
    return ", ".join(said)


class Shown:
    """What is shown of trainings that go on: the latest moment of each, and each alarm once.

    `draw` gets the lines of the picture, `say` a sentence.
    """

    def __init__(
        self,
        draw: Callable[[Sequence[str]], None] | None,
        say: Callable[[str], None],
        *,
        width: int,
        braille: bool,
        alarms: bool = True,
    ) -> None:
        self._draw, self._say = draw, say
        self._width, self._braille = width, braille
        self._has_alarms = alarms
        self._moments: dict[str, Moment] = {}
        self._alarms = Alarms()

    def follow(self, name: str, recorder: "Recorder", losses: Sequence[float] = ()) -> None:
        """Show what `recorder` records; `losses` are those of the epochs before."""
        self._alarms = _alarms_for(recorder, losses)

        def show(trace: Trace) -> None:
            rates = (float(one["lr"]) for one in _groups(recorder) if "lr" in one)
            self._tell(name, self._alarms.records(trace, max(rates, default=None)))
            loss = None if recorder.loss is None else float(recorder.loss)
            now = moment(trace, loss) if self._draw is not None else None
            if self._draw is not None and now is not None:
                self._moments = dict([*self._moments.items(), (name, now)][-MOST:])
                self._draw(lines(self._moments, width=self._width, braille=self._braille))

        recorder.tell(show)

    def epoch(self, name: str, train_loss: float) -> None:
        self._tell(name, self._alarms.epoch(train_loss))

    def _tell(self, name: str, found: Sequence[Alarm]) -> None:
        for alarm in found if self._has_alarms else ():
            self._say(f"{name}  look: {alarm}")


def _alarms_for(recorder: "Recorder", losses: Sequence[float]) -> Alarms:
    """With Adam's ε, if there is one, and the parameters that should receive a gradient."""
    groups = _groups(recorder)
    eps = min((group["eps"] for group in groups if "betas" in group), default=None)
    owned = {id(parameter) for group in groups for parameter in group["params"]}
    named = recorder.model.named_parameters()
    return Alarms(eps, {n for n, p in named if p.requires_grad and id(p) in owned}, losses)


def _groups(recorder: "Recorder") -> list[dict[str, Any]]:
    return [group for one in recorder.optimizers if one is not None for group in one.param_groups]


@contextmanager
def watch(
    model: "nn.Module",
    optimizer: "Optimizer | Sequence[Optimizer] | None",
    *,
    live: bool = True,
    alarms: bool = True,
    **options: Any,
) -> "Iterator[Recorder]":
    """Record a loop of one's own and show it while it trains; `options` are a `Recorder`'s.

    On a terminal the gradients by depth stand below what the loop prints; set `recorder.loss` to
    the loss of a step to see it there. With `alarms`, what asks for a look (NaN, a layer without
    gradient, dead channels, updates too large or too small, gradients as small as Adam's ε) is
    said on stderr, once per kind, with its number and threshold. It takes less than a hundredth of
    the time::

        with gradflow.watch(model, optimizer, every=16) as recorder:
            for images, labels in batches:
                ...
    """
    from gradflow.record import Recorder

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    with (
        Recorder(model, optimizer, **options) as recorder,
        Live(console=console, auto_refresh=False, transient=True) as screen,
    ):
        shown = Shown(
            (lambda drawn: screen.update(Text("\n".join(drawn), no_wrap=True), refresh=True))
            if live and console.is_terminal
            else None,
            lambda said: console.print(said, soft_wrap=True),
            width=console.width,
            braille=can_show_braille(console.encoding),
            alarms=alarms,
        )
        shown.follow(type(recorder.model).__name__, recorder)
        yield recorder
