"""A case pairs networks by seed, and says what it leaves out."""

from dataclasses import replace

import numpy as np
import pytest
from traces import STACK, group, make_network

from gradflow.analysis.case import Case
from gradflow.analysis.network import TrainedNetwork


def test_networks_are_paired_by_seed_whatever_their_order() -> None:
    mine = [make_network("plain", seed) for seed in (7, 3, 5)]
    theirs = [make_network("residual", seed) for seed in (5, 7, 3)]
    case = Case.of(mine, theirs)
    assert case.seeds == (3, 5, 7)
    assert [one.seed for one in case.reference] == [3, 5, 7]
    assert case.pairs(lambda one, other: one.seed - other.seed) == (0, 0, 0)
    assert (case.name, case.reference_name) == ("plain", "residual")


def test_what_has_no_partner_is_left_out_and_noted() -> None:
    case = Case.of(group(3, name="plain"), [make_network("residual", seed) for seed in (1, 2, 9)])
    assert case.seeds == (1, 2)
    assert case.notes[:2] == (
        "plain, seed 0, was left out: it has no partner.",
        "residual, seed 9, was left out: it has no partner.",
    )


def test_a_network_alone() -> None:
    case = Case.of([make_network(seed=2), make_network(seed=1)])
    assert case.seeds == (1, 2)
    assert case.reference_name == ""
    assert case.pairs(lambda one, other: 1.0) == ()
    assert case.each(lambda one: float(one.seed)) == (1.0, 2.0)
    assert case.common_layers == case.accused[0].layers


def test_common_layers_of_networks_of_different_depth() -> None:
    deep, shallow = STACK, STACK[:4]
    case = Case.of(group(2, names=deep), group(2, name="shallow", names=shallow))
    assert [layer.name for layer in case.common_layers] == list(STACK[:3])


def test_towers_are_compared_with_those_of_the_same_names_whatever_their_lengths() -> None:
    """The accused has its long tower second, the reference first."""

    def network(name: str, n_actor: int, n_critic: int, seed: int) -> TrainedNetwork:
        names = [*(f"actor.{i}" for i in range(n_actor)), *(f"critic.{i}" for i in range(n_critic))]
        decades = np.concatenate([np.linspace(-2, 0, n_actor), np.zeros(n_critic)])
        one = make_network(name, seed, names=names, tables={"output_grad_norm": 10**decades})
        before = {f"actor.{i + 1}": f"actor.{i}" for i in range(n_actor)}
        before |= {f"critic.{i + 1}": f"critic.{i}" for i in range(n_critic)}
        feeds = {at: tuple(filter(None, (before.get(at), f"{at}.weight"))) for at in names}
        return replace(one, trace=replace(one.trace, feeds=feeds))

    mine = [network("mine", 4, 7, seed) for seed in range(2)]
    theirs = [network("theirs", 6, 4, seed) for seed in range(2)]
    case = Case.of(mine, theirs)
    assert [layer.name for layer in case.common_layers] == ["actor.0", "actor.1", "actor.2"]
    assert "from actor.0 to actor.2 (first over last δ 0.0464)" in case.notes[-1]


TWICE = [make_network(seed=1), make_network(seed=0), make_network(seed=1)]


@pytest.mark.parametrize(
    ("accused", "reference", "message"),
    [
        ([], [], "at least one trained network to judge, but got none"),
        (TWICE, [], r"every seed of plain once, but got \[0, 1, 1\]"),
        (group(2), TWICE, "every seed of plain once"),
        (group(2), [make_network("residual", 5)],
         r"with a seed in common, but got \[0, 1\] and \[5\]"),
    ],
)  # fmt: skip
def test_what_makes_no_case(
    accused: list[TrainedNetwork], reference: list[TrainedNetwork], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Case.of(accused, reference)
