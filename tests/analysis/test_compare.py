"""Which layers differ: a planted difference is found, and equal networks are not told apart."""

from dataclasses import replace

import numpy as np
import pytest
from traces import N_STEPS, RESIDUAL, group, make_case, make_network

from gradflow.analysis.case import Case
from gradflow.analysis.compare import Comparison, _compare, compare
from gradflow.analysis.network import TrainedNetwork

N_TRIALS = 400
LAYERS = (*(f"layer1.{i}.conv1" for i in range(33)), "fc")


def by_way(found: list[Comparison], size: str = "output_gradient") -> dict[str, Comparison]:
    return {one.at: one for one in found if one.size == size}


def planted(name: str, factor: float, seed: int) -> TrainedNetwork:
    """`factor` stands at one layer, with a little noise at all of them."""
    table = 10 ** np.random.default_rng(seed).normal(0, 0.05, (N_STEPS, len(RESIDUAL)))
    table[:, 4] *= factor
    losses = np.linspace(2, 1, N_STEPS)
    return make_network(name, seed, tables={"output_grad_norm": table}, losses=losses)


def test_a_planted_difference_is_found_where_it_is() -> None:
    mine = [planted("plain", 3.0, seed) for seed in range(5)]
    theirs = [replace(planted("residual", 1.0, seed + 50), seed=seed) for seed in range(5)]
    found = by_way(compare(Case.of(mine, theirs)))
    assert set(found) == {"start", "equal step", "equal loss"}
    for comparison in found.values():
        assert [one.layer for one in comparison.layers if one.differs] == [RESIDUAL[4]]
        assert comparison.differs
        layer = comparison.layers[4]
        assert layer.factor == pytest.approx(3, rel=0.2)
        assert layer.ratio.low < np.log10(3) < layer.ratio.high
        assert comparison.seeds == (0, 1, 2, 3, 4)


def test_a_fast_network_differs_at_equal_step_and_not_at_equal_loss() -> None:
    """Where the gradient follows the loss alone, as one learns twice as fast."""

    def one(name: str, seed: int, speed: float) -> TrainedNetwork:
        losses = 2 - speed * np.arange(60) / 100
        noise = np.random.default_rng(seed).normal(0, 0.02, 10)
        table = 10 ** (3 * losses[:, np.newaxis] + noise)
        rates = np.repeat([1.0, 0.1], 30)
        tables = {"output_grad_norm": table}
        return make_network(
            name, seed, tables=tables, losses=losses, learning_rates=rates, n_steps=60
        )

    mine = [one("slow", seed, 1) for seed in range(5)]
    theirs = [replace(one("fast", seed + 50, 2), seed=seed) for seed in range(5)]
    found = by_way(compare(Case.of(mine, theirs)))
    assert all(layer.differs for layer in found["equal step"].layers)
    assert found["equal step"].layers[0].factor > 1.5
    assert not found["equal loss"].differs
    assert not found["start"].differs


def test_few_seeds_show_no_difference() -> None:
    found = compare(make_case({"level": 3}, {}, n_seeds=2))
    assert found
    assert not any(one.differs for one in found)
    assert all(layer.p_value == 1 for one in found for layer in one.layers)


def test_what_was_not_recorded_is_not_compared() -> None:
    case = make_case({}, {})
    assert {one.at for one in compare(case)} == {"start", "equal step"}  # no losses
    for name in ("output_grad_norm", "grad_norm"):
        del case.reference[2].trace.values[name]
    assert compare(case) == []


def test_traces_without_a_common_early_step_have_no_equal_step() -> None:
    mine = group(3)
    theirs = [
        replace(one, trace=replace(one.trace, steps=one.trace.steps + 100)) for one in group(3)
    ]
    assert {one.at for one in compare(Case.of(mine, theirs))} == {"start"}


def test_one_network_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="two networks to compare, but got plain alone"):
        compare(make_case({}))


def test_json_is_plain() -> None:
    content = compare(make_case({"tables": {"output_grad_norm": float("nan")}}, {}))[0].to_json()
    assert content["at"] == "start"
    assert content["layers"][0]["log10_ratio"] is None
    assert content["layers"][0]["interval"] == [None, None]
    assert content["layers"][0]["p_value"] == 1


def test_equal_networks_are_told_apart_in_at_most_five_percent() -> None:
    """Five seeds, 33 layers, half of whose noise is shared by all layers of a seed."""
    correlation = 0.5
    case = make_case({"names": LAYERS}, {"names": LAYERS})
    random = np.random.default_rng(0)
    shared = random.normal(0, correlation**0.5, (N_TRIALS, 5, 1))
    own = random.normal(0, (1 - correlation) ** 0.5, (N_TRIALS, 5, 33))
    n_wrong = sum(
        _compare(case, "output_gradient", "start", ratios).differs for ratios in shared + own
    )
    error = (0.05 * 0.95 / N_TRIALS) ** 0.5
    print(f"{n_wrong} of {N_TRIALS} told apart")
    assert n_wrong / N_TRIALS <= 0.05 + 3 * error
