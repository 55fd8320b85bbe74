"""Windows of a training, and two trainings brought to equal loss."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from traces import RESIDUAL, make_network, make_trace

from gradflow.analysis.network import (
    LOSS_LEVELS,
    TrainedNetwork,
    distance_travelled,
    early,
    equal_loss_steps,
    first_drop,
    log_ratio,
    mean_of_layers,
    third,
)
from gradflow.analysis.profile import depth_profile


def test_an_empty_trace_and_one_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="records of plain, seed 3, but its trace is empty"):
        TrainedNetwork("plain", 3, make_trace({}, n_steps=0))
    with pytest.raises(ValueError, match="at least two layers"):
        TrainedNetwork("plain", 3, make_trace({}, ("fc",)))


# -- early -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "n_steps", "every", "drop", "expected"),
    [
        (np.repeat([0.1, 0.01, 0.001], 10), 30, 1, 10, range(10)),
        (np.repeat([1.0, 0.1], 20), 10, 4, 20, (0, 4, 8, 12, 16)),  # optimizer steps, not records
        ((0.1, 0.2, 0.3, 0.3, 0.3, 0.3, 0.1, 0.1), 8, 1, 6, range(6)),  # after a warm-up
        (None, 30, 1, None, (0, 1, 2)),  # the first tenth
        (np.ones(30), 30, 1, None, (0, 1, 2)),
        (np.linspace(1, 0, 40), 40, 1, 1, range(4)),  # at least the first tenth
        (None, 2, 1, None, (0,)),  # and one step
    ],
)
def test_early_is_before_the_learning_rate_first_falls(
    rates: Any, n_steps: int, every: int, drop: int | None, expected: Sequence[int]
) -> None:
    trace = make_trace({}, n_steps=n_steps, every=every)
    network = TrainedNetwork("plain", 0, trace, learning_rates=rates)
    assert first_drop(network) == drop
    assert trace.steps[early(network)].tolist() == list(expected)


# -- thirds and means ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "first", "last"), [(9, 3, 3), (11, 3, 3), (3, 1, 1), (2, 1, 1), (1, 1, 1)]
)
def test_thirds(n: int, first: int, last: int) -> None:
    layers = list(range(n))
    assert layers[third(n, "first")] == layers[:first]
    assert layers[third(n, "last")] == layers[-last:]


def test_mean_of_layers_leaves_out_what_was_not_taken() -> None:
    table = np.array([[1.0, np.nan, 9], [3, np.nan, 9], [100, 100, 9]])
    trace = make_trace({"adam_attenuation": table}, ("0", "2", "4"), n_steps=3)
    network = TrainedNetwork("plain", 0, trace)
    layers = network.layers[:2]
    steps = np.array([True, True, False])
    assert mean_of_layers(network, "adam_attenuation", layers, steps) == 2
    assert np.isnan(mean_of_layers(network, "adam_update_rms", layers, steps))


def moving(every: int, n_steps: int, lost: bool = False) -> TrainedNetwork:
    update = np.full((n_steps, 3), 0.5)
    update[:, 2] = np.nan
    if lost:
        update[1, 0] = np.nan
    tables = {"update_norm": update, "weight_norm": np.full(3, 2.0)}
    return TrainedNetwork(
        "plain", 0, make_trace(tables, ("0", "2", "4"), n_steps=n_steps, every=every)
    )


def test_distance_travelled_adds_the_relative_updates() -> None:
    np.testing.assert_allclose(distance_travelled(moving(1, 8)), [2, 2])
    lost = moving(1, 8, lost=True)
    np.testing.assert_allclose(distance_travelled(lost), [1.75, 2])
    unknown = moving(1, 8)
    at = unknown.trace.sites.index(unknown.layers[0].weight)
    unknown.trace.values["update_norm"][:, at] = np.nan
    np.testing.assert_allclose(distance_travelled(unknown), [np.nan, 2])


def test_distance_travelled_does_not_depend_on_how_often_it_was_recorded() -> None:
    often, seldom = moving(1, 801), moving(16, 51)  # both up to step 800
    np.testing.assert_allclose(distance_travelled(often), distance_travelled(seldom))


# Rows at which what is dear is measured: the first 16, and then one in 8.
FULL = np.isin(np.arange(33), [*range(16), 16, 24, 32])


def falling() -> TrainedNetwork:
    """Relative updates that fall by the step, so that the first steps are not like the others."""
    network = moving(1, 33)
    network.trace.values["update_norm"] *= np.linspace(3, 1, 33)[:, np.newaxis]
    return network


def test_steps_without_an_update_stand_at_the_mean_of_their_neighbours() -> None:
    """So that a measured one in 8 is enough: exact where updates change in proportion to time."""
    always, seldom = falling(), falling()
    for measure in ("update_norm", "weight_norm"):
        seldom.trace.values[measure][~FULL] = np.nan
    np.testing.assert_allclose(distance_travelled(always), distance_travelled(seldom))


def test_the_first_steps_which_are_all_full_do_not_rule_a_mean() -> None:
    """Weights are the steps that each stands for, by hand."""
    network = falling()
    values = network.trace.values["update_norm"]
    values[~FULL] = np.nan
    layers, column = network.layers[:1], network.trace.sites.index(network.layers[0].weight)
    got = mean_of_layers(network, "update_norm", layers, np.ones(33, dtype=bool))
    want = (values[:17, column].sum() + 8 * values[[24, 32], column].sum()) / 33
    assert got == pytest.approx(want)
    profile = depth_profile(network.trace, "update_norm")
    logs = np.log(values[:, column])
    want = np.exp((logs[:17].sum() + 8 * logs[[24, 32]].sum()) / 33)
    assert profile.values[0] == pytest.approx(want)


def test_distance_travelled_is_unknown_where_it_was_not_recorded() -> None:
    network = TrainedNetwork("plain", 0, make_trace({"grad_norm": 1.0}))
    assert np.isnan(distance_travelled(network)).all()


# -- equal loss ------------------------------------------------------------------------------------

FALL = np.linspace(2, 1, 101)  # of the slow network, one hundredth at each step


def learning(losses: np.ndarray, level: np.ndarray | float = 1.0, every: int = 1) -> TrainedNetwork:
    n = -(-len(losses) // every)
    table = np.broadcast_to(np.asarray(level, np.float64), (n,))[:, np.newaxis]
    trace = make_trace({"output_grad_norm": np.tile(table, 10)}, n_steps=n, every=every)
    return TrainedNetwork("plain", 0, trace, losses=losses)


def test_a_network_twice_as_fast_reaches_every_level_in_half_the_steps() -> None:
    slow, fast = learning(FALL), learning(np.linspace(2, 0, 101))
    pairs = equal_loss_steps(slow, fast)
    assert len(pairs) == LOSS_LEVELS
    for mine, theirs in pairs:
        assert mine.sum() == theirs.sum() == 1
        assert np.argmax(mine) == pytest.approx(2 * np.argmax(theirs), abs=2)
    assert np.argmax(pairs[-1][0]) > 90


def test_at_equal_loss_only_the_loss_counts() -> None:
    """Gradients that depend on nothing but the loss are equal there, and not at equal step."""
    fast_losses = np.linspace(2, 0, 101)
    slow, fast = learning(FALL, 10**FALL), learning(fast_losses, 10**fast_losses)
    layers = slow.layers
    np.testing.assert_allclose(
        log_ratio(slow, fast, "output_gradient", layers, equal_loss_steps(slow, fast)), 0, atol=0.03
    )
    at_equal_step = np.mean(np.log10(10**FALL / 10**fast_losses))
    assert at_equal_step == pytest.approx(0.5)


def test_the_nearest_recorded_step_stands_for_a_level() -> None:
    slow, fast = learning(FALL, every=10), learning(np.linspace(2, 0, 101), every=5)
    for mine, theirs in equal_loss_steps(slow, fast):
        step, their_step = slow.trace.steps[mine][0], fast.trace.steps[theirs][0]
        assert abs(FALL[step] - np.linspace(2, 0, 101)[their_step]) < 0.12


def test_no_common_range_or_no_losses_give_no_pairs() -> None:
    slow = learning(FALL)
    assert equal_loss_steps(slow, learning(FALL - 5)) == []
    assert equal_loss_steps(slow, make_network()) == []
    assert equal_loss_steps(make_network(), slow) == []
    assert equal_loss_steps(slow, learning(np.full(101, np.nan))) == []


def test_a_network_that_diverges_is_compared_until_then() -> None:
    diverging = FALL.copy()
    diverging[50:] = np.nan
    pairs = equal_loss_steps(learning(diverging), learning(FALL))
    assert len(pairs) == LOSS_LEVELS
    assert max(np.argmax(mine) for mine, _ in pairs) < 50


def test_noise_of_single_batches_does_not_pass_for_learning() -> None:
    spikes = FALL.copy()
    spikes[10] = 0.0  # one lucky batch
    pairs = equal_loss_steps(learning(spikes), learning(FALL))
    assert np.argmax(pairs[-1][0]) > 90


def test_one_lost_step_does_not_lose_the_layer() -> None:
    level = np.ones(101)
    whole = learning(FALL, level)
    level[0] = 0  # as after a skipped step: nothing was measured at the first level
    lost = learning(FALL, level)
    steps = equal_loss_steps(lost, whole)
    ratio = log_ratio(lost, whole, "output_gradient", whole.layers, steps)
    np.testing.assert_allclose(ratio, 0, atol=1e-12)


def test_networks_with_and_without_norm_compare_where_each_has_its_output() -> None:
    tables = {"output_grad_norm": 10.0}
    normed, bare = (
        TrainedNetwork("plain", 0, make_trace(tables, RESIDUAL, norm=norm))
        for norm in (True, False)
    )
    steps = [(early(normed), early(bare))]
    ratio = log_ratio(normed, bare, "output_gradient", normed.layers, steps)
    np.testing.assert_allclose(ratio, 0, atol=1e-12)
