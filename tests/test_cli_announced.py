"""`gradflow train` says again how long it takes, where the machine has changed its pace."""

import io
import time

import numpy as np
import pytest
from rich.console import Console

from gradflow.cli.announced import ENOUGH, WARM_UP, Countdown, Work, announced


def said(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The announcements of a training, with the time that each step of an epoch takes."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    out = io.StringIO()
    log = Console(file=out, width=200)
    work = Work(n_steps=20, n_epochs=len(seconds), validation=1.0, ending=1.0)
    with announced(log, work, 1, at_most=False, stop_if_asked=lambda: None) as told:
        told.begin("net", 0)
        for of_step in seconds:
            for _ in range(work.n_steps):
                now += of_step
                told.step()
            now += of_step
            told.epoch()
    return [line for line in out.getvalue().splitlines() if line.startswith("time")]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        ([1.0] * 4, ["1 min 20 s left, evaluation and rivals included"]),  # 85 steps, nine done
        ([1.0, 10.0, 10.0, 10.0], ["1 min 20 s left", "s left, the machine has become slower or"]),
        ([0.05, 0.05, 0.15, 0.15], ["5 s left"]),  # a few seconds at the end: not worth a line
    ],
    ids=["an even pace", "ten times slower from the second epoch on", "a short training"],
)
def test_a_pace_is_announced_once_and_again_where_it_changes(
    seconds: list[float], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = said(seconds, monkeypatch)
    assert (len(lines) > 1) == (len(told) > 1)
    for line, words in zip(lines, told, strict=False):
        assert words in line


@pytest.mark.parametrize(("n", "says"), [(3, "3 measurements"), (0, "none is cheap enough")])
def test_the_phase_after_a_network_is_announced(n: int, says: str) -> None:
    out = io.StringIO()
    work = Work(n_steps=20, n_epochs=1, validation=1.0, ending=1.0)
    log = Console(file=out, width=200)
    with announced(log, work, 1, at_most=False, stop_if_asked=lambda: None) as told:
        told.begin("net", 0)
        told.measured(0, n)
    assert out.getvalue().startswith(f"rivals         {says}")


# -- near the truth from the first seconds, on planted times of steps ------------------------------


WORK = Work(n_steps=26, n_epochs=10, validation=1.0, ending=50.0)
FIRST_ANNOUNCED = WARM_UP + ENOUGH + 1


def train(
    seconds: np.ndarray, *, n_networks: int = 2, n_epochs: int = 10, forward: float = 1.0
) -> tuple[list[float | None], list[float]]:
    """After each mark: what is announced, and what then really came. One time for each step.

    `forward` is what a step's worth of evaluation takes in truth, in steps.
    """
    countdown = Countdown(WORK.total * n_networks)
    announced, clock, times = [], 0.0, iter(seconds)

    def advance(work: float, took: float) -> None:
        nonlocal clock
        clock += took
        countdown.advance(work, clock)
        announced.append(countdown.left)

    for _ in range(n_networks):
        for _ in range(n_epochs):
            for _ in range(WORK.n_steps):
                advance(1.0, last := next(times))
            advance(WORK.validation, WORK.validation * last * forward)
        countdown.skip((WORK.n_epochs - n_epochs) * WORK.epoch)
        advance(WORK.ending, WORK.ending * last * forward)
    clocks = [now for now, _ in countdown.marks]
    return announced, [clock - now for now in clocks]


def noisy_steps(n: int) -> np.ndarray:
    """About 0.1 s each, and the first ones ten times slower."""
    seconds = 0.1 * np.random.default_rng(0).uniform(0.8, 1.2, n)
    seconds[:WARM_UP] = 1.0
    return seconds


def test_nothing_is_announced_before_there_are_steps_enough() -> None:
    announced, _ = train(noisy_steps(520))
    assert announced[: FIRST_ANNOUNCED - 1] == [None] * (FIRST_ANNOUNCED - 1)
    assert None not in announced[FIRST_ANNOUNCED - 1 :]


@pytest.mark.parametrize("forward", [0.5, 1.0, 1.5])
def test_the_first_announcement_counts_warm_up_out_and_all_that_comes_in(forward: float) -> None:
    """Within a quarter, even where evaluation takes half or half as long again as was thought."""
    announced, true = train(noisy_steps(520), forward=forward)
    for told, came in zip(
        announced[FIRST_ANNOUNCED - 1 :], true[FIRST_ANNOUNCED - 1 :], strict=True
    ):
        assert told == pytest.approx(came, rel=0.25, abs=4.0)
    assert announced[-1] == pytest.approx(0.0)


def test_an_early_stop_only_shortens_and_leaves_the_pace_alone() -> None:
    announced, true = train(noisy_steps(520), n_epochs=4)
    first = announced[FIRST_ANNOUNCED - 1]
    assert first is not None
    assert first > true[FIRST_ANNOUNCED - 1], "at most"
    second_network = announced[4 * 27 + 1]  # the mark after that of the first network's end
    assert second_network == pytest.approx(0.1 * WORK.total, rel=0.1)


def test_what_is_left_by_hand() -> None:
    marks = [(0.0, 0.0), (50.0, 1.0), (60.0, 2.0), (70.0, 3.0)]
    marks += [(72.0, 4.0), (74.0, 5.0), (76.0, 6.0), (78.0, 7.0), (82.0, 9.0)]
    assert Countdown(20.0, marks=marks[:8]).left is None
    assert Countdown(20.0, marks=marks).left == pytest.approx((82 - 72) / (9 - 4) * 11)
