"""How long a training still takes: told from its own steps, in one line and a bar on a terminal.

The unit is one optimizer step. What comes beside the steps (validation, evaluation, the rivals)
is counted in steps too, so that it is announced before it was ever seen; and because time is taken
from mark to mark, what it really cost is in the pace as soon as it was seen.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import TaskID, TextColumn

from gradflow.cli.console import Bar, picture, progress

if TYPE_CHECKING:
    from gradflow.training.config import TrainConfig
    from gradflow.training.images import Data

WARM_UP = 4  # of the first steps: memory is taken and kernels are chosen, at many times the price
ENOUGH = 4  # steps after that, before anything is announced
WINDOW = 100  # marks: a machine that becomes slower changes the pace within so many steps

# A batch of the same size without gradients; measured on ResNet-34 (width 0.25, 8 px, batch 50).
FORWARD = 0.25
# An announcement that is wrong by this factor and by so many seconds is made again after an epoch.
WRONG, WORTH_SAYING = 1.5, 15


@dataclass(frozen=True)
class Work:
    """What training one network takes, in optimizer steps."""

    n_steps: int  # per epoch
    n_epochs: int  # at most
    validation: float  # after each epoch
    ending: float  # evaluation and rivals, once

    @property
    def epoch(self) -> float:
        return self.n_steps + self.validation

    @property
    def total(self) -> float:
        """All of it.

        >>> Work(n_steps=26, n_epochs=10, validation=1.0, ending=50.0).total
        320.0
        """
        return self.n_epochs * self.epoch + self.ending


def work_of_one(config: "TrainConfig", data: "Data", n_processes: int) -> Work:
    """What training one network takes, as far as that is known before."""
    training = data.training(config, 0)
    n_batches = training.n_batches(n_processes)
    n_steps = -(-n_batches // (config.batches_per_step or n_batches))
    n_images = {part: len(getattr(data.split, part)) for part in ("train", "validation", "test")}
    # Twice each part, and the training images twice more for the recalibrated loss.
    n_evaluated = 2 * sum(n_images.values()) + 2 * n_images["train"]
    rivals = config.rivals_budget if config.log_grads and config.rivals else 0.0
    return Work(
        n_steps,
        config.epochs,
        validation=FORWARD * n_images["validation"] / config.batch_size,
        ending=FORWARD * n_evaluated / config.batch_size
        + min(rivals, 1.0) * n_steps * config.epochs,
    )


@dataclass
class Countdown:
    """The work of a training under way, and the marks of what is done."""

    total: float
    done: float = 0.0
    marks: list[tuple[float, float]] = field(default_factory=list)  # seconds on a clock, work done

    def advance(self, work: float, now: float) -> None:
        self.done += work
        self.marks.append((now, self.done))

    def skip(self, work: float) -> None:
        """Of work that will not come, as after an early stop: it must not count for the pace."""
        self.total -= work

    @property
    def left(self) -> float | None:
        """In seconds, at the pace between the last marks, without the first `WARM_UP` of them.

        None before there are `ENOUGH` more.
        """
        usable = self.marks[WARM_UP:][-WINDOW:]
        if len(usable) <= ENOUGH:
            return None
        (start, done_before), (now, done) = usable[0], usable[-1]
        return (now - start) / (done - done_before) * (self.total - done)


def time_text(seconds: float) -> str:
    """To the precision that an announcement has.

    >>> time_text(7.4), time_text(83), time_text(4000)
    ('10 s', '1 min 25 s', '1 h 7 min')
    """
    if seconds < 60:
        return f"{5 * max(1, math.ceil(seconds / 5))} s"
    if seconds < 3600:
        minutes, rest = divmod(5 * math.ceil(seconds / 5), 60)
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes} min"


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
            said = (
                f"{n} measurement{'s' * (n > 1)} of rival explanations. Ctrl-C stops here; "
                "`gradflow diagnose --measure` measures the rest later."
                if n
                else "none is cheap enough for so short a training (--rivals-budget); "
                "`gradflow diagnose --measure` measures them."
            )
            self._log.print(f"rivals         {said}", highlight=False, soft_wrap=True)
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
