"""Schedules: which steps they record, and what that costs."""

import math

import pytest
import torch
from torch import nn

from gradflow import MaxOverhead, Recorder


def run(schedule: MaxOverhead, n_steps: int, recorded: float, bare: float = 1.0) -> list[int]:
    """The steps that are recorded where recording changes a step's time from bare to recorded."""
    steps = []
    for step in range(n_steps):
        is_recorded = schedule(step)
        schedule.saw_step(is_recorded, recorded if is_recorded else bare)
        steps += [step] * is_recorded
    return steps


@pytest.mark.parametrize(("price", "interval"), [(0.01, 1), (0.09, 5), (0.5, 25), (3.0, 150)])
def test_the_interval_keeps_the_cost_below_the_share(price: float, interval: int) -> None:
    schedule = MaxOverhead(0.02)
    steps = run(schedule, 4000, 1 + price)
    assert schedule.interval == interval
    assert schedule.price == pytest.approx(price)
    late = [step for step in steps if step >= 2000]
    assert len(late) * price / (4000 - 2000) <= 0.02
    assert steps[0] == 0, "the first step says how training began"


def test_the_overhead_is_what_was_spent() -> None:
    schedule = MaxOverhead(0.05)
    n_recorded = len(run(schedule, 1000, 1.2))
    assert schedule.overhead == pytest.approx(n_recorded * 0.2 / 1000, rel=0.01)


def test_writing_records_counts_as_their_price() -> None:
    schedule = MaxOverhead(0.02)
    run(schedule, 100, 1.0)
    schedule.saw_flush(10, 1.0)
    assert schedule.price == pytest.approx(0.1)


def test_a_price_that_rises_widens_the_interval() -> None:
    schedule = MaxOverhead(0.02)
    run(schedule, 500, 1.02)
    before = schedule.interval
    for step in range(500, 3000):
        is_recorded = schedule(step)
        schedule.saw_step(is_recorded, 1.4 if is_recorded else 1.0)
    assert before < schedule.interval == 20


def test_nothing_is_claimed_before_there_are_times() -> None:
    schedule = MaxOverhead(0.02)
    assert math.isnan(schedule.price)
    assert math.isnan(schedule.overhead)


@pytest.mark.parametrize("wrong", [0, 1, -0.1, 2])
def test_a_wrong_share_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="share of the training time between 0 and 1, but got"):
        MaxOverhead(wrong)


def test_the_recorder_tells_the_schedule_its_times() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = MaxOverhead(0.5)
    with Recorder(model, optimizer, every=schedule) as recorder:
        for _ in range(100):
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert schedule.price > 0
    assert 0 < len(recorder.trace) < 100
