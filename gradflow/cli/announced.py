"""What `gradflow train` says of the time that it still takes: one line, and a bar on a terminal."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import TaskID, TextColumn

from gradflow.cli.console import Bar, picture, progress
from gradflow.training.remaining import Countdown, Work, time_text

# An announcement that is wrong by this factor and by so many seconds is made again after an epoch.
WRONG, WORTH_SAYING = 1.5, 15


class Told:
    """Is told what a training has done, and tells the person how long the rest will take."""

    def __init__(
        self,
        log: Console,
        bar: Bar,
        task: TaskID,
        work: Work,
        n_networks: int,
        *,
        at_most: bool,
        stop_if_asked: Callable[[], None],
    ) -> None:
        self._log, self._bar, self._task, self._work = log, bar, task, work
        self._countdown = Countdown(work.total * n_networks)
        self._at_most = "at most " if at_most else ""
        self._stop_if_asked = stop_if_asked
        self._of_this = 0.0  # work done for the network in training
        self._of_rivals = 0  # measurements done of its rivals
        self._announced: float | None = None  # when all of it ends, on the clock

    def begin(self, network: str, n_epochs_done: int) -> None:
        """The training of this network begins, or goes on after so many epochs."""
        self._of_this = n_epochs_done * self._work.epoch
        self._of_rivals = 0
        self._countdown.skip(self._of_this)
        self._bar.update(self._task, description=network)

    def below(self, drawn: Sequence[str]) -> None:
        """A picture below the bar."""
        self._bar.below = picture(drawn)

    def step(self) -> None:
        self._advance(1)
        self._stop_if_asked()

    def epoch(self) -> None:
        self._advance(self._work.validation)
        left = self._countdown.left
        if left is not None and self._announced is not None:
            expected = self._announced - time.monotonic()
            is_wrong = not left / WRONG <= expected <= left * WRONG
            if is_wrong and abs(left - expected) > WORTH_SAYING:
                self._say(left, "the machine has become slower or faster")

    def measured(self, n_done: int, n: int) -> None:
        """Of the rivals, which are the last part of a network's work, each alike."""
        if n_done == 0:
            self._log.print(
                f"rivals         {n} measurements of rival explanations. Ctrl-C stops here; "
                "`gradflow diagnose --measure` measures the rest later.",
                highlight=False,
                soft_wrap=True,
            )
        self._bar.update(self._task, description=f"rivals {n_done} of {n}")
        self._of_rivals, before = n_done, self._of_rivals
        self._advance(self._work.ending * max(0, n_done - before) / max(1, n))
        self._stop_if_asked()

    def end(self) -> None:
        """The network is done; what it did not need, as after an early stop, is skipped."""
        rest = self._work.total - self._of_this
        ending = min(rest, self._work.ending) if self._of_rivals == 0 else 0.0
        self._countdown.skip(rest - ending)
        self._advance(ending)

    def _advance(self, work: float) -> None:
        self._of_this += work
        self._countdown.advance(work, time.monotonic())
        left = self._countdown.left
        if left is None:
            return
        text = f"{self._at_most}{time_text(left)} left"
        self._bar.update(
            self._task,
            completed=round(self._countdown.done),
            total=round(self._countdown.total),
            left=text,
        )
        if self._announced is None:
            self._say(left, "evaluation and rivals included")

    def _say(self, left: float, why: str) -> None:
        self._announced = time.monotonic() + left
        text = f"time           {self._at_most}{time_text(left)} left, {why}"
        self._log.print(text, highlight=False, soft_wrap=True)


@contextmanager
def announced(
    log: Console,
    work: Work,
    n_networks: int,
    *,
    at_most: bool,
    stop_if_asked: Callable[[], None],
) -> Iterator[Told]:
    """Around the training of `n_networks` networks, each of `work`."""
    total = round(work.total * n_networks)
    column = TextColumn("{task.fields[left]}")
    with progress(log, "training", total=total, columns=[column]) as (bar, task):
        yield Told(log, bar, task, work, n_networks, at_most=at_most, stop_if_asked=stop_if_asked)
