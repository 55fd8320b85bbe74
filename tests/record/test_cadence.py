"""Full steps: at which recorded steps what is dear is measured, and that nothing else changes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from byhand import value
from loops import inputs, recorded
from torch import Tensor, nn

from gradflow.record import MEASURES, Recorder, Trace, outputs, parameters
from gradflow.record.measures import Measure
from gradflow.record.schedule import MaxOverhead

ADAM = [name for name in MEASURES if not name.startswith(("grad_noise", "grad_signal"))]
AT_EVERY_STEP = {
    "output_grad_norm", "output_grad_rms", "output_grad_nonfinite", "grad_norm", "grad_nonfinite",
    "grad_cosine",
}  # fmt: skip


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    )


def train(
    n_steps: int, before: Callable[[int], object] = lambda step: None, **options: Any
) -> tuple[Trace, list[Tensor]]:
    """What was recorded, and the losses; `before` is told of each step."""
    model, losses = network(), []

    def loss(step: int) -> Tensor:
        before(step)
        images = inputs(4, 1, 4, 4, seed=step)
        losses.append(F.cross_entropy(model(images), torch.tensor([0, 1, 0, 1])))
        return losses[-1]

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return recorded(model, loss, optimizer, n_steps=n_steps, **options), losses


def steps_of(trace: Trace, measure: str) -> list[int]:
    return trace.steps[np.isfinite(trace.values[measure]).any(axis=1)].tolist()


def test_gradients_are_measured_at_every_step_and_the_rest_at_the_full_ones() -> None:
    """Where a measure is taken it has the number that it has with everything at every step."""
    all_of_it, losses = train(40, measures=ADAM, cadence=1)
    trace, same_losses = train(40, measures=ADAM)
    assert torch.equal(torch.stack(losses), torch.stack(same_losses))
    assert (trace.sites, trace.kinds) == (all_of_it.sites, all_of_it.kinds)
    assert np.array_equal(trace.sizes, all_of_it.sizes)
    full = [*range(16), 16, 24, 32]
    for measure in ADAM:
        if measure == "output_dead_window":
            assert steps_of(trace, measure) == [15, 16, 24, 32]
            continue
        got, want = trace.values[measure], all_of_it.values[measure].copy()
        if measure not in AT_EVERY_STEP:
            want[np.setdiff1d(np.arange(40), full)] = np.nan
        np.testing.assert_allclose(got, want, rtol=1e-6, err_msg=measure)


def test_the_full_steps_are_counted_in_recorded_ones() -> None:
    for every in (2, lambda step: step % 2 == 0):
        trace, _ = train(60, every=every, cadence=5)
        assert len(trace) == 30
        assert steps_of(trace, "weight_norm") == [2 * index for index in [*range(16), 20, 25]]


def test_between_full_steps_neither_outputs_nor_weights_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That is what makes them cheap."""

    def refuse(*args: object) -> None:
        pytest.fail("read")

    def before(step: int) -> None:
        if step == 17:
            monkeypatch.setattr(outputs, "output_sums", refuse)
            for name in ("adam_sums", "compare", "gradient_sums"):
                monkeypatch.setattr(parameters, name, refuse)
        if step == 24:
            monkeypatch.undo()

    trace, _ = train(25, before, measures=ADAM)
    assert steps_of(trace, "update_norm") == [*range(17), 24]


def test_passes_of_a_step_that_was_not_full_leave_no_half_sums() -> None:
    """A forward pass of step 23 has its backward pass in step 24, beside one that was read."""
    model = nn.Sequential(nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Recorder(model, optimizer, first_step=23) as recorder:
        first = model(torch.ones(4, 3)).sum()
        model(torch.ones(5, 3)).sum().backward()
        optimizer.step()
        first.backward()
        model(torch.ones(6, 3)).sum().backward()
        optimizer.step()
        trace = recorder.trace
    for measure, want in (
        ("output_grad_norm", [10**0.5, 20**0.5]),
        ("output_grad_rms", [1, 1]),  # n is of all passes
        ("output_mean", [np.nan, np.nan]),
    ):
        np.testing.assert_array_equal([value(trace, measure, "0", i) for i in (0, 1)], want)
    assert np.isfinite(trace.values["weight_norm"][1]).any(), "step 24 is full"


def test_measures_of_the_users_own_are_taken_at_every_recorded_step() -> None:
    own = [
        Measure("largest", "output", "max z", "activation", function=lambda z: z.max()),
        Measure("g", "parameter", "max g", "loss / weight", function=lambda w, g: g.max()),
    ]
    trace, _ = train(20, measures=[*own, "weight_norm"])
    assert steps_of(trace, "largest") == steps_of(trace, "g") == list(range(20))
    assert steps_of(trace, "weight_norm") == list(range(17))


def test_the_size_of_a_gradient_takes_the_weight_of_the_last_full_step() -> None:
    """So that it is there at every step. The norm itself is told only where it was read."""
    all_of_it, _ = train(30, cadence=1)
    trace, _ = train(30)
    column, table = trace.sites.index("0.weight"), trace.select("scale_invariant_grad")
    got = table.values[:, table.sites.index("0.weight")]
    held = all_of_it.values["weight_norm"][[*range(17), *[16] * 7, *[24] * 6], column]
    want = trace.values["grad_norm"][:, column] * held
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert np.isnan(trace.values["weight_norm"][17, column])


def test_full_steps_count_in_the_price_by_their_part() -> None:
    """One recorded step in 8 costs 50 %, the others 2 %: 8 % in the mean."""
    schedule = MaxOverhead(0.05)
    index = 0
    for step in range(2000):
        is_recorded, is_full = schedule(step), index % 8 == 0
        price = (1.5 if is_full else 1.02) if is_recorded else 1.0
        schedule.saw_step(is_recorded, price, is_full)
        index += is_recorded
    assert schedule.price == pytest.approx((0.5 + 7 * 0.02) / 8, rel=1e-6)
    assert schedule.interval == 2


@pytest.mark.parametrize("cadence", [0, -1, 1.5, True, "8"])
def test_a_cadence_is_a_whole_number(cadence: Any) -> None:
    model = network()
    with pytest.raises(ValueError, match="Expected `cadence` to be a whole number of at least 1"):
        Recorder(model, torch.optim.SGD(model.parameters()), cadence=cadence)
    assert not model[0]._forward_hooks
