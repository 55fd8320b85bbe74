"""What can be measured is described, chosen and joined by measures of one's own."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from byhand import values
from loops import loss_of, recorded, sgd, small_net
from torch import Tensor, nn

from gradflow import Recorder, Trace
from gradflow.record import DERIVED, MEASURES, Measure
from gradflow.record.measures import READS, choose
from gradflow.record.sums import OUTPUT_SUMS

ALL_SUMS = {
    *OUTPUT_SUMS, "dead", "dead_window", "output_grad_square", "output_grad_nonfinite", "size",
    *chain.from_iterable(READS.values()),
}  # fmt: skip


# -- what is described -------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES.values(), ids=lambda measure: measure.name)
def test_every_measure_is_described_and_finishes(measure: Measure) -> None:
    """It has a formula and a unit, and is computed from sums that are taken."""
    assert measure.formula
    assert measure.unit
    assert measure.read in READS
    assert measure.finish is not None
    table = measure.finish({name: np.full((3, 2), 2.0) for name in ALL_SUMS})
    assert table.shape == (3, 2)
    assert np.isfinite(table).all()


@pytest.mark.parametrize("derived", DERIVED.values(), ids=lambda derived: derived.name)
def test_every_derived_measure_is_described_and_computed(derived: Any) -> None:
    assert derived.formula
    assert derived.unit
    assert derived.name not in MEASURES
    assert all(MEASURES[name].of == derived.of for name in derived.needs)
    assert derived.compute(*(np.full((3, 2), 2.0) for _ in derived.needs)).shape == (3, 2)


def test_all_measures_at_once_and_each_alone_give_the_same_numbers(reads: list[bool]) -> None:
    """What is not chosen is not read, and nothing else depends on it."""
    hooked: list[bool] = []

    def record(measures: Sequence[str]) -> Trace:
        model = small_net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        reads.clear()
        hooked.clear()

        def loss(seed: int) -> Tensor:
            hooked.append(bool(model[0]._forward_hooks))
            return loss_of(model, seed)

        return recorded(model, loss, optimizer, n_steps=2, measures=measures)

    whole = record(list(MEASURES))
    assert set(whole.values) == set(MEASURES)
    for name, measure in MEASURES.items():
        alone, together = record([name]).select(name), whole.select(name)
        assert bool(reads) == (measure.of == "output"), name
        assert hooked == [measure.of != "parameter"] * 2, name
        assert alone.sites == together.sites
        np.testing.assert_allclose(alone.values, together.values, rtol=1e-6, err_msg=name)


# -- choosing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nope"], r"Expected measures of output_mean, .*or a Measure of your own.*got 'nope'"),
        (["relative_update"], r"Record 'update_norm' and 'weight_norm'; `trace.select\('relative_"),
        (["grad_norm", "output_rms", "grad_norm"], "every measure once.*got grad_norm twice"),
        ([], "at least one, but got none"),
    ],
    ids=["unknown", "derived", "twice", "none"],
)
def test_a_wrong_choice_is_told(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(names)
    with pytest.raises(ValueError, match=message):
        Recorder(model := small_net(), sgd(model), measures=names)


@pytest.mark.parametrize(
    ("of", "made_by", "message"),
    [
        ("weight", {"function": torch.sum}, "of an output, an output gradient or a parameter.*'m'"),
        ("output", {}, "the measure 'm' to have either `function`.*or `finish`"),
        ("output", {"function": torch.sum, "finish": torch.sum}, "either `function`.*or `finish`"),
    ],
    ids=["of nothing known", "made by nothing", "made twice"],
)
def test_a_measure_checks_itself(of: Any, made_by: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Measure("m", of, "", "", **made_by)


# -- the user's own ----------------------------------------------------------------------------


def test_measures_of_ones_own_are_recorded_by_name() -> None:
    """An output's, averaged over the forward passes of a step, its gradient's, a parameter's."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh())
    own = [
        Measure("largest", "output", "max z", "activation", function=torch.max),
        Measure("slope", "output gradient", "Σg", "1", function=lambda g: g.sum().item()),
        Measure("grad_l1", "parameter", "Σ|g|", "1", function=lambda w, g: g.abs().sum()),
        Measure("trace", "parameter", "tr w", "weight", function=lambda w, g: w.trace()),
    ]
    xs = torch.tensor([[[1.0, 2.0]], [[-1.0, 0.5]]])
    trace_before = model[0].weight.trace().item()
    largest = [model[0](x).max().item() for x in xs]
    trace = recorded(model, lambda i: model(xs[i]).sum() * 3, n_passes=2, measures=own)
    grad_l1 = model[0].weight.grad.abs().sum().item()
    assert set(trace.measures) == {"largest", "slope", "grad_l1", "trace"}
    assert trace.select("largest").sites == ("0", "1")
    assert trace.select("grad_l1").sites == ("0.weight",)
    assert values(trace, "largest", "0") == pytest.approx(np.mean(largest), rel=1e-6)
    assert values(trace, "slope", "1") == pytest.approx(6, rel=1e-6)
    assert values(trace, "grad_l1", "0.weight") == pytest.approx(grad_l1, rel=1e-6)
    assert values(trace, "trace", "0.weight") == pytest.approx(trace_before, rel=1e-6)


@pytest.mark.parametrize("of", ["output", "output gradient", "parameter"])
def test_a_function_that_returns_several_numbers_is_told(of: Any) -> None:
    """It may not grow the graph."""

    def function(*tensors: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not any(x.requires_grad for x in tensors)
        return torch.ones(2, 3)

    model, own = small_net(), Measure("mine", of, "", "", function=function)
    with pytest.raises(ValueError, match=r"'mine' to return one number.*shape \(2, 3\)"):
        recorded(model, lambda _: loss_of(model), measures=[own])
