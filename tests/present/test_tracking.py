"""What trackers are told of a training: which values, at which steps, how many, how often."""

import math

import numpy as np
import pytest

from gradflow.analysis.profile import geometric_mean, layer_table
from gradflow.present.tracking import network_log
from gradflow.present.tracking.network_log import NetworkLog
from gradflow.present.tracking.rows import (
    VALUES_PER_LOG,
    VALUES_PER_MINUTE,
    Budget,
    histogram_rows,
    layer_columns,
    n_values,
    step_rows,
)
from gradflow.present.tracking.sink import LAYER, STEP
from gradflow.record.histograms import N_BINS
from gradflow.record.trace import Trace
from tests.present.epochs import Clock, Memory, Training, epoch_of, trace_of, with_histograms

PLENTY = 10**6

# -- the rows of an epoch ----------------------------------------------------------------------


def test_an_epoch_without_a_full_step_logs_every_layer():
    """The norms of the weights were not read in it; a layer keeps its number."""
    trace = trace_of([17, 18])
    before = layer_columns(trace)
    del trace.values["weight_norm"]
    after = layer_columns(trace)
    assert before.keys() == after.keys()
    assert all(np.isfinite(column).all() for column in after.values())


def test_a_row_holds_the_loss_each_layer_on_the_path_in_depth_order_and_the_stages() -> None:
    rows = step_rows(epoch_of(0, 12, (0.5, 0.25)), trace_of([10, 11]), PLENTY)
    layers = {
        "grad_norm/00.conv1/weight": 11.5,
        "grad_norm/00.conv1/output": 11.0,
        "grad_norm/01.layer1.0.conv1/weight": 11.7,
        "grad_norm/01.layer1.0.conv1/output": 11.2,
        "grad_norm/02.layer1.0.conv2/weight": 11.8,
        "grad_norm/02.layer1.0.conv2/output": 11.3,
        "grad_norm/03.fc/weight": 11.9,
        "grad_norm/03.fc/output": 11.4,
    }
    stages = {
        "stage/conv1/weight": 11.5,
        "stage/conv1/output": 11.0,
        "stage/layer1/weight": math.sqrt(11.7 * 11.8),
        "stage/layer1/output": math.sqrt(11.2 * 11.3),
        "stage/fc/weight": 11.9,
        "stage/fc/output": 11.4,
    }
    assert list(rows) == [10, 11]
    assert rows[10] == pytest.approx({"train/loss": 0.5, **layers, **stages})
    assert rows[11]["grad_norm/03.fc/weight"] == pytest.approx(12.9)
    told = [key for key in rows[10] if key.startswith("grad_norm/")]
    assert told == sorted(told, key=lambda key: key.split("/")[1])


def test_a_layer_keeps_its_number_while_another_is_frozen() -> None:
    trace = trace_of([0])
    trace.values["grad_norm"][:, 5] = np.nan  # conv1.weight
    row = step_rows(epoch_of(0, 1, (0.5,)), trace, PLENTY)[0]
    assert "grad_norm/00.conv1/weight" not in row
    assert "stage/conv1/weight" not in row
    assert row["grad_norm/01.layer1.0.conv1/weight"] == pytest.approx(1.7)


@pytest.mark.parametrize(("every", "n_per_step"), [(1, 16), (4, 17)])
def test_a_long_epoch_is_thinned_evenly_and_keeps_its_ends(every: int, n_per_step: int) -> None:
    n, most = 5001, 10_000
    losses = tuple(float(i) for i in range(n))
    rows = step_rows(epoch_of(0, n, losses), trace_of(range(0, n, every)), most)
    assert most - n_per_step < len(_steps_with(rows, "stage/fc/weight")) * n_per_step <= most
    assert n_values(rows) <= most
    for key in ("train/loss", "grad_norm/00.conv1/weight"):
        steps = _steps_with(rows, key)
        assert (steps[0], steps[-1]) == (0, n - 1)
        assert np.ptp(np.diff(steps)) <= every
    assert all(row["train/loss"] == step for step, row in rows.items() if "train/loss" in row)


def _steps_with(rows: dict[int, dict[str, float]], key: str) -> np.ndarray:
    return np.array(sorted(step for step, row in rows.items() if key in row))


@pytest.mark.parametrize("name", ["{i}.weight", "part{i}.conv.weight", "stage{s}.{i}.weight"])
def test_a_network_of_a_thousand_layers_stays_within_a_log(name: str) -> None:
    n = 1000
    sites = tuple(name.format(i=i, s=i // 40) for i in range(n))
    ones = np.ones((1, n))
    values = {"grad_norm": ones, "weight_norm": ones, "output_grad_norm": ones * np.nan}
    kinds = ("linear.weight",) * n
    trace = Trace(np.zeros(1, np.int64), sites, kinds, np.ones(n, np.int64), values)
    rows = step_rows(epoch_of(0, 1, (0.5,)), trace, PLENTY)
    assert 400 < n_values(rows) <= VALUES_PER_LOG
    layers = [key for key in rows[0] if key.startswith("grad_norm/")]
    assert layers[0].startswith("grad_norm/000.")
    assert layers[-1].startswith("grad_norm/999.")


def test_histograms_of_few_layers_where_there_is_no_room_for_all() -> None:
    found = with_histograms([0]).histograms
    assert found is not None
    sites = [f"{name}.weight" for name in ("conv1", "layer1.0.conv1", "frozen", "fc")]
    names = [f"{layer}/{kind}" for layer in ("00.conv1", "01.layer1.0.conv1", "03.fc")
             for kind in ("weight", "gradient")]  # fmt: skip
    assert list(histogram_rows(found, sites, PLENTY)) == [f"histogram/{name}" for name in names]
    for most, n in ((-5, 0), (2 * N_BINS, 1), (4 * N_BINS, 2)):
        assert len(histogram_rows(found, sites, most)) == 2 * n


# -- the budget --------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.01, 0.5, 3.0, 61.0, 600.0])
def test_no_minute_sees_more_than_a_hundred_thousand_values(seconds: float) -> None:
    """Greedy epochs of ten thousand steps each, short and long, over at least three minutes."""
    clock = Clock()
    sink, budget = Memory(clock), Budget(clock)
    n_epochs = 30 if seconds < 0.1 else max(4, int(180 / seconds))
    n_steps = 5_000
    for index in range(n_epochs):
        clock.now += seconds
        log = NetworkLog("a-s0", [sink], budget, clock=clock)  # also over networks
        end = (index + 1) * n_steps
        log.log_epoch(epoch_of(index, end, (1.0,) * n_steps))
    assert sink.most_in_a_minute() <= VALUES_PER_MINUTE
    assert max(n for _, n in sink.values) <= VALUES_PER_LOG
    spent = sum(n for _, n in sink.values)
    wanted = n_epochs * (2 * n_steps + 7)
    assert spent >= 0.9 * min(wanted, 50_000 + seconds * n_epochs * 50_000 / 60), "not idle either"
    assert len([row for _, _, row in sink.rows if "epoch" in row]) == n_epochs


# -- the training of one network ----------------------------------------------------------------


@pytest.fixture
def drawing_takes_a_second(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of the clock that is handed out; the pictures are those of the real functions."""
    clock = Clock()
    to_pixels = network_log.plots.to_pixels

    def draw(*arguments: object) -> np.ndarray:
        clock.now += 0.5
        return to_pixels(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(network_log.plots, "to_pixels", draw)
    return clock


def test_pictures_take_a_small_share_of_the_time_and_the_last_epoch_has_them(
    drawing_takes_a_second: Clock,
) -> None:
    sink = Memory()
    training = Training(sink, clock=drawing_takes_a_second)
    training.run(80)
    training.log.close({})
    heatmaps = [step for key, step, _ in sink.pictures if key == "gradient/heatmap"]
    # The first at once; then 1 s of drawing needs 33 s of training; the last in any case.
    assert heatmaps == [2, 2 + 2 * 34, 2 + 2 * 68, 160]
    profiles = [step for key, step, _ in sink.pictures if key == "gradient/depth_profile"]
    assert profiles == heatmaps
    assert all(
        p.dtype == np.uint8 and p.shape[1:] in ((700, 3), (800, 3)) for _, _, p in sink.pictures
    )


@pytest.mark.parametrize("n_before", [0, 2], ids=["from the start", "resumed"])
def test_a_training_ends_with_its_profiles_by_layer_and_its_summary(n_before: int) -> None:
    """Means over all that is on disk, also from before a resume."""
    sink = Memory()
    training = Training(sink, n_before=n_before)
    with training.log as log:
        training.run(3)
        log.close({"best/test_accuracy": 0.8})
    whole = trace_of(range(6))
    rows = {at: row for axis, at, row in sink.rows if axis == LAYER}
    for size in ("output_gradient", "scale_invariant", "gradient_rms"):
        expected = geometric_mean(layer_table(whole, size).values)
        told = [rows[layer][f"profile/{size}"] for layer in range(3)]
        np.testing.assert_allclose(told, expected)
    assert sorted(rows) == [0, 1, 2], "the classifier does not compare with convolutions"
    assert sink.ends == [({"best/test_accuracy": 0.8}, False)], "once"


def test_without_records_numbers_are_logged_and_nothing_is_drawn() -> None:
    sink = Memory()
    log = NetworkLog("a", [sink], Budget(Clock()))
    log.log_epoch(epoch_of(0, 2, (1.0, 0.5)))
    log.close({})
    first, second, (_, at, of_epoch) = sink.rows
    assert first == (STEP, 0, {"train/loss": 1.0})
    assert second == (STEP, 1, {"train/loss": 0.5})
    assert (at, len(of_epoch)) == (2, 6)
    assert sink.pictures == []


def test_every_sink_is_told_the_same_and_is_ended_though_another_fails() -> None:
    class Full(Memory):
        def finish(self, summary: object, *, failed: bool = False) -> None:
            raise OSError("disk full")

    first, second = Full(), Memory()
    training = Training(second, first)
    training.run(2)
    with pytest.raises(OSError, match="disk full"):
        training.log.close({})
    assert first.rows == second.rows
    assert second.ends == [({}, False)]


def test_a_training_that_fails_ends_its_sinks_as_failed() -> None:
    sink = Memory()
    training = Training(sink)
    training.run(1)
    with pytest.raises(KeyboardInterrupt), training.log:
        raise KeyboardInterrupt
    assert sink.ends == [({}, True)]


def test_sinks_that_wait_for_the_verdict_end_with_it_once() -> None:
    sink = Memory()
    training = Training(sink)
    with training.log as log:
        training.run(1)
        log.close({"last/test_accuracy": 0.5}, keep_open=True)
    assert sink.ends == []
    log.end({"verdict/outcome": "refuted"})
    log.end()
    assert sink.ends == [({"last/test_accuracy": 0.5, "verdict/outcome": "refuted"}, False)]
