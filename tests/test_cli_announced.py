"""`gradflow train` says again how long it takes, where the machine has changed its pace."""

import io
import time

import pytest
from rich.console import Console

from gradflow.cli.announced import announced
from gradflow.training.remaining import Work


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


def test_an_even_pace_is_announced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """85 steps of a second, of which nine are done."""
    (line,) = said([1.0] * 4, monkeypatch)
    assert line == "time           1 min 20 s left, evaluation and rivals included"


def test_a_pace_that_changes_is_announced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times slower from the second epoch on."""
    first, second, *_ = said([1.0, 10.0, 10.0, 10.0], monkeypatch)
    assert "1 min 20 s left" in first
    assert second.endswith("s left, the machine has become slower or faster")


def test_a_few_seconds_at_the_end_are_not_worth_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times slower in the last epoch but one, of a second each."""
    assert len(said([0.05, 0.05, 0.15, 0.15], monkeypatch)) == 1
