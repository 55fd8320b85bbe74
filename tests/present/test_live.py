"""A training as it goes: the picture, its places, and its share of the time."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import gradflow
from gradflow.present import live
from gradflow.record import Recorder, Trace
from gradflow.record.buffer import EVERY_SECONDS, MAX_SHARE
from tests.analysis.traces import make_trace
from tests.conftest import Command


def trained(n_steps: int, model: nn.Sequential, recorder: Recorder, lr: float = 0.01) -> None:
    optimizer = recorder.optimizers[0]
    assert optimizer is not None
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        recorder.loss = loss
        optimizer.step()


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def test_a_moment_is_the_mean_of_the_last_steps_by_depth() -> None:
    rows = np.ones((20, 3))
    rows[12:] = [0.01, 1.0, 7.0]
    tables = {"output_grad_norm": rows, "update_norm": 0.2, "weight_norm": 2.0}
    trace = make_trace(tables, ("0", "2", "4"))
    now = live.moment(trace, 1.5)
    assert now is not None
    np.testing.assert_allclose(now.values, [0.01, 1.0])
    assert now.update == pytest.approx(0.1)
    last = live.lines({"net": now})[-1]
    assert last == "net  step 19, loss 1.5, first/last 0.01x, update up to 0.1 (0.weight)"
    assert "1" in live.lines({"net": now}, braille=False)[0]


@pytest.mark.parametrize("names", [("fc",), ()])
def test_where_there_is_no_depth_there_is_no_picture(names: tuple[str, ...]) -> None:
    trace = make_trace({"grad_norm": 1.0}, names) if names else Trace.concat([])
    assert live.moment(trace) is None
    assert live.lines({}) == []


def test_a_loop_of_ones_own_is_watched_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(live, "Console", lambda **_: terminal)
    model = deep()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    with gradflow.watch(model, optimizer) as recorder:
        trained(3, model, recorder)
    assert "Sequential  step 0, loss" in screen.getvalue()
    assert len(recorder.trace) == 3


def test_showing_changes_no_weight_and_no_record() -> None:
    results = []
    for is_shown in (False, True):
        model = deep()
        with Recorder(model, torch.optim.SGD(model.parameters(), 0.1)) as recorder:
            if is_shown:
                recorder.tell(lambda trace: None)
                monkey = recorder._buffer.watchers
                monkey.is_due = lambda: True  # type: ignore[method-assign]
            trained(40, model, recorder)
        results.append((model.state_dict(), recorder.trace))
    (weights, plain), (shown_weights, shown) = results
    assert all(torch.equal(weights[name], shown_weights[name]) for name in weights)
    for measure, table in plain.values.items():
        np.testing.assert_array_equal(table, shown.values[measure])


def test_who_raises_is_not_asked_again_and_training_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = deep()
    calls = []

    def fails(trace: Trace) -> None:
        calls.append(trace)
        raise OSError("the terminal is gone")

    with Recorder(model, torch.optim.SGD(model.parameters(), 0.1)) as recorder:
        recorder.tell(fails)
        trained(3, model, recorder)
    assert len(calls) == 1
    assert "the terminal is gone" in caplog.text


def test_what_takes_long_is_shown_less_often() -> None:
    model = deep()
    with Recorder(model, torch.optim.SGD(model.parameters(), 0.1)) as recorder:
        recorder.tell(lambda trace: time.sleep(0.01))
        trained(1, model, recorder)
        left = recorder._buffer.watchers._next - time.perf_counter()
    assert left > 0.9 * max(EVERY_SECONDS, 0.01 / MAX_SHARE)


def test_watch_shows_records_of_a_loop_from_the_disk(tmp_path: Path, command: Command) -> None:
    model = deep()
    with Recorder(model, torch.optim.SGD(model.parameters(), 0.1), folder=tmp_path / "net") as r:
        trained(4, model, r)
    for folder in (tmp_path / "net", tmp_path):
        assert "net  step 3, first/last" in command("watch", folder).out
    (tmp_path / "empty").mkdir()
    assert "No records" in command("watch", tmp_path / "empty").out
    assert command("watch", tmp_path / "gone").code == 2
