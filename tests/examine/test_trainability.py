"""The limits of `gradflow check`: both sides of each, and what the zoo's stored results say."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradflow.analysis.rates import Rate
from gradflow.examine.trainability import (
    ALIKE,
    DEAFENING,
    DIFFERING,
    GONE,
    GROWN,
    LOUD,
    SHRUNK,
    TRAINED,
    Prospect,
    norm_of,
)

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def prospect(
    decades: float = 0.0, differing: float = 1.0, rms: float = 1.0, *, is_finite: bool = True
) -> Prospect:
    return Prospect(Rate(np.array([10.0**decades, 1.0])), differing, rms, is_finite)


@pytest.mark.parametrize(
    ("given", "outlook", "cause"),
    [
        ({}, "ordinary", ""),
        ({"decades": SHRUNK.value + 0.01}, "ordinary", ""),
        ({"decades": SHRUNK.value - 0.01}, "doubtful", "vanishing"),
        ({"decades": GONE.value + 0.01}, "doubtful", "vanishing"),
        ({"decades": GONE.value - 0.01}, "unlikely to train", "vanishing"),
        ({"decades": GROWN.value - 0.01}, "ordinary", ""),
        ({"decades": GROWN.value + 0.01}, "doubtful", "exploding"),
        ({"differing": ALIKE.value * 1.01}, "ordinary", ""),
        ({"differing": ALIKE.value * 0.99}, "doubtful", "vanishing"),
        ({"rms": LOUD.value * 0.99}, "ordinary", ""),
        ({"rms": LOUD.value * 1.01}, "doubtful", "exploding"),
        ({"rms": DEAFENING.value * 1.01}, "unlikely to train", "exploding"),
        ({"is_finite": False}, "unlikely to train", "exploding"),
        ({"decades": math.nan}, "unknown", ""),
    ],
)
def test_the_label_turns_at_its_limits(given: dict, outlook: str, cause: str) -> None:  # type: ignore[type-arg]
    found = prospect(**given)
    assert (found.outlook, found.cause) == (outlook, cause)


def test_where_it_begins() -> None:
    def begins(*values: float) -> int | None:
        return Prospect(Rate(np.array(values)), 1.0, 1.0, True).begins

    assert begins(1e-9, 1e-6, 1e-5, 1.0, 1.0) == 2
    assert begins(1e-9, math.nan, 1e-5, 1.0, 1.0) == 2
    assert begins(0.0, 0.0, 1e-5, 1.0) == 1, "zeros have a place of their own"
    assert begins(1.0, 0.0, 1.0) is None, "a branch that starts as the identity"
    assert begins(0.0, 0.0) == 1, "everything is dead"


def test_the_share_that_differs_between_inputs() -> None:
    """Var over the mean square: 1 without a mean, 0 where all inputs give the same."""
    share = DIFFERING.function
    assert share is not None
    assert share(torch.tensor([[1.0, -2.0], [-1.0, 2.0]])) == pytest.approx(1)
    assert share(torch.tensor([[3.0, 1.0], [5.0, 1.0]])) == pytest.approx(2 / 36)
    assert share(torch.ones(4, 3, 2)) == share(torch.zeros(4, 3)) == 0
    assert share(torch.ones(1, 3)).isnan()


def test_a_norm_of_weights_is_no_norm_of_outputs() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    assert norm_of(normed) == "no norm"
    assert norm_of(nn.Sequential(normed, nn.LayerNorm(3))) == "LayerNorm"
    assert norm_of(nn.Sequential(nn.GroupNorm(1, 3), nn.BatchNorm1d(3))) == "BatchNorm"


def stored(name: str) -> dict:  # type: ignore[type-arg]
    content: dict = json.loads((RESULTS / name).read_text(encoding="utf-8"))  # type: ignore[type-arg]
    return content


def test_the_ranges_that_are_printed_are_those_of_the_zoo() -> None:
    found = stored("zoo.json")["trained"]
    assert found.keys() == TRAINED.keys()
    for norm, (n, low, high) in TRAINED.items():
        assert found[norm] == [n, pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01)]


def test_the_labels_that_were_stored_are_those_of_today() -> None:
    """What the zoo found is worth nothing once the limits are others."""
    for name, one in stored("zoo-check.json").items():
        if one["n_without"] or one["output_rms"] is None or one["differing"] is None:
            continue
        decades = math.nan if one["decades"] is None else one["decades"]
        if abs(decades) < 300:
            found = prospect(decades, one["differing"], one["output_rms"])
            assert (found.outlook, found.cause) == (one["outlook"], one["cause"]), name


def test_the_limits_reach_their_goal_on_the_half_that_did_not_set_them() -> None:
    """At least 95 % of what trains with neither optimizer is flagged, at most 5 % of the rest."""
    test = stored("zoo.json")["test"]
    assert test["hits"]["share"] >= 0.95
    assert test["false alarms"]["share"] <= 0.05
