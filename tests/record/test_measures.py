"""Measures against closed forms and plain autograd, through a Recorder on small networks."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from byhand import values
from loops import loss_of, recorded, sgd, small_net
from torch import Tensor, nn

from gradflow import Recorder, Trace
from gradflow.record import Measure


class Vector(nn.Module):
    """One parameter, whose gradients the tests make by hand."""

    def __init__(self, values: Sequence[float] | Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(values).clone())

    def set(self, values: Sequence[float] | Tensor) -> None:
        self.w.data.copy_(torch.as_tensor(values))


def fed(
    model: Vector, grads: Iterable[Sequence[float] | Tensor], optimizer: Any = None, **options: Any
) -> Trace:
    """One optimizer step with each of these gradients."""
    optimizer = optimizer or sgd(model)
    with Recorder(model, optimizer, **options) as recorder:
        for grad in grads:
            model.w.grad = torch.as_tensor(grad).to(model.w.dtype).clone()
            optimizer.step()
    return recorder.trace


# -- weights and gradients ---------------------------------------------------------------------


def test_scale_invariant_grad_does_not_see_the_scale_of_a_normed_weight() -> None:
    """Before a BatchNorm, a weight ten times as large has a tenth of the gradient."""
    results = []
    for scale in (1, 10):
        model = small_net()
        model[1].eps = 1e-12
        model[0].weight.data *= scale
        model[0].bias.data *= scale
        results.append(
            recorded(model, partial(loss_of, model), measures=["grad_norm", "weight_norm"])
        )
    one, ten = (values(trace, "grad_norm", "0.weight") for trace in results)
    assert one == pytest.approx(10 * ten, rel=1e-3)
    one, ten = (values(trace, "scale_invariant_grad", "0.weight") for trace in results)
    assert one == pytest.approx(ten, rel=1e-3)


def test_grad_cosine_compares_with_the_last_recorded_step() -> None:
    grads = ([3.0, 0.0], [-1.0, 0.0], [1.0, 1.0], [-2.0, -2.0], [0.0, 0.0], [5.0, 1.0])
    trace = fed(Vector([1.0, 1.0]), grads, every=lambda step: step != 1, measures=["grad_cosine"])
    want = [np.nan, 0.5**0.5, -1, np.nan, np.nan]
    np.testing.assert_allclose(values(trace, "grad_cosine"), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("n", "dtype", "angle", "rtol"),
    [
        (2, torch.float32, 0.5, 1e-4),
        (2, torch.float64, 0.5, 1e-6),
        (2, torch.float64, 1e-6, 1e-6),
        (2, torch.float64, 3.1, 1e-6),
        (100_000, torch.float32, 1e-6, 0.05),  # of many elements, float32 tells so small an angle
    ],
)
def test_angle_from_start_is_that_of_a_known_rotation(
    n: int, dtype: torch.dtype, angle: float, rtol: float
) -> None:
    """Also where the step makes the weight longer, and where acos would say 0, or 3e-4."""
    start, ortho = (x / x.norm() for x in torch.randn(2, n, dtype=torch.float64))
    ortho -= start * (ortho @ start)
    turned = np.cos(angle) * start + np.sin(angle) * ortho / ortho.norm()
    model = Vector(start.to(dtype))
    with Recorder(model, None, measures=["angle_from_start", "weight_norm"]) as recorder:
        for length in (1.0, 1.0, 1.0) if n > 2 else (3.0, 0.5, 1.0):
            with recorder.around_step():
                model.set((length * turned).to(dtype))
    got = values(recorder.trace, "angle_from_start")
    np.testing.assert_allclose(got, [0, angle, angle], rtol=rtol, atol=1e-7 if n == 2 else 0)


# -- updates -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("lr", "share"), [(1e-12, 0), (1e-3, 1)])
def test_update_changed_fraction_sees_updates_that_rounding_swallows(
    lr: float, share: float
) -> None:
    model = Vector(torch.linspace(0.5, 2, 1000))
    measures = ["update_changed_fraction", "update_norm"]
    trace = fed(model, [torch.ones(1000)], sgd(model, lr), measures=measures)
    assert values(trace, "update_changed_fraction") == pytest.approx(share, abs=0.01)
    assert (values(trace, "update_norm") > 0) == bool(share)


def test_shares_of_a_complex_parameter_are_shares() -> None:
    """Its elements are counted as the two real numbers that are summed."""
    model = Vector(torch.ones(5, dtype=torch.complex64))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    measures = ["update_changed_fraction", "adam_attenuation", "adam_update_rms"]
    trace = fed(model, [torch.full((5,), 1 - 1j)], optimizer, measures=measures)
    for name in measures:
        assert values(trace, name) == pytest.approx(1, rel=1e-5), name


def test_gradients_that_a_fused_step_unscales_are_given_in_true_size() -> None:
    """It divides by the scale of mixed precision inside its step, and in the gradients' place."""
    own = Measure("l1", "parameter", "Σ|g|", "1", function=lambda w, g: g.abs().sum())
    measures = [own, "grad_dot_update", "grad_noise", "grad_signal"]
    traces = []
    for scale in (1.0, 2.0**10):
        model, scaler = small_net(), torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        with Recorder(model, optimizer, scaler=scaler, measures=measures) as recorder:
            for step in range(2):
                for part in range(2):
                    scaler.scale(loss_of(model, 2 * step + part, n=4) / 2).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        traces.append(recorder.trace)
    for name in traces[0].measures:
        one, other = (trace.select(name).values for trace in traces)
        assert np.isfinite(one).all()
        np.testing.assert_allclose(other, one, rtol=1e-2, atol=1e-7, err_msg=name)


def test_grad_dot_update_is_not_taken_where_the_optimizer_overwrites_the_gradient() -> None:
    class Overwriting(torch.optim.SGD):
        def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad.zero_()

    model = Vector([1.0, 2.0])
    optimizer = Overwriting(model.parameters(), lr=0.1)
    trace = fed(model, [[3.0, 4.0]], optimizer, measures=["grad_dot_update", "grad_norm"])
    assert np.isnan(trace.values["grad_dot_update"]).all()
    assert values(trace, "grad_norm") == 5


# -- Adam --------------------------------------------------------------------------------------

ADAM_MEASURES = ("adam_attenuation", "adam_update_rms")


def adam_trace(grads: Callable[[int], Tensor], n_steps: int, **options: object) -> Trace:
    """The last of some steps of Adam on these gradients."""
    model = Vector(torch.zeros_like(grads(0)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, **options)
    return fed(
        model, map(grads, range(n_steps)), optimizer,
        every=lambda step: step == n_steps - 1, measures=ADAM_MEASURES,
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"amsgrad": True}], ids=str)
@pytest.mark.parametrize("n_steps", [1, 7])
def test_adam_on_a_constant_gradient_takes_full_steps(n_steps: int, options: dict) -> None:
    """From the first step on: the averages are corrected for their start at 0."""
    trace = adam_trace(lambda step: torch.tensor([2.0, -3.0, 0.1]), n_steps, **options)
    assert values(trace, "adam_update_rms") == pytest.approx(1, rel=1e-4)


def test_adam_attenuation_tells_gradients_as_small_as_epsilon() -> None:
    generator = torch.Generator().manual_seed(0)
    trace = adam_trace(lambda step: 1e-8 * torch.randn(5000, generator=generator).sign(), 50)
    assert values(trace, "adam_attenuation") == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("measure", ADAM_MEASURES)
def test_measures_of_adam_are_refused_with_another_optimizer(measure: str) -> None:
    model = Vector([1.0])
    with pytest.raises(ValueError, match="Expected Adam or AdamW.*got SGD. Leave them out"):
        Recorder(model, sgd(model), measures=[measure])
    with pytest.raises(ValueError, match="Expected Adam or AdamW.*got NoneType"):
        Recorder(model, None, measures=[measure])


# -- micro-batches -----------------------------------------------------------------------------

NOISE_MEASURES = ("grad_noise", "grad_signal")


def micro_batch_trace(
    model: Vector, draws: Iterable[np.ndarray], zero: Callable[[torch.optim.Optimizer], None]
) -> Trace:
    """Steps of K micro-batches, for each (K, elements) of their own gradients.

    As with a GradScaler, a step whose gradient is not finite is not taken.
    """
    optimizer = sgd(model, lr=0.01)
    with Recorder(model, optimizer, measures=NOISE_MEASURES, cadence=1) as recorder:
        for step in draws:
            zero(optimizer)
            for gradient in step:
                (model.w @ torch.tensor(gradient).to(model.w.dtype) / len(step)).backward()
            if np.isfinite(step).all():
                optimizer.step()
    return recorder.trace


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grad_noise_and_signal_have_their_closed_form(
    dtype: torch.dtype, set_to_none: bool
) -> None:
    draws = 1 + np.random.default_rng(0).standard_normal((5, 4, 30))
    model = Vector(torch.zeros(30, dtype=dtype))
    trace = micro_batch_trace(model, draws, lambda o: o.zero_grad(set_to_none=set_to_none))
    mean = draws.mean(axis=1, keepdims=True)
    noise = ((draws - mean) ** 2).sum(axis=(1, 2)) / 3
    signal = (mean**2).sum(axis=(1, 2)) - noise / 4
    np.testing.assert_allclose(values(trace, "grad_noise"), noise, rtol=1e-4)
    np.testing.assert_allclose(values(trace, "grad_signal"), signal, rtol=1e-4)
    np.testing.assert_allclose(values(trace, "grad_noise_scale"), noise / signal, rtol=1e-4)
    np.testing.assert_allclose(values(trace, "grad_snr"), signal / noise, rtol=1e-4)


def test_noise_of_one_micro_batch_is_not_known() -> None:
    trace = micro_batch_trace(Vector(torch.zeros(3)), np.ones((2, 1, 3)), lambda o: o.zero_grad())
    assert np.isnan(trace.values["grad_noise"]).all()
    assert np.isnan(trace.values["grad_signal"]).all()


def test_micro_batches_of_a_step_that_never_came_do_not_count() -> None:
    """It met an inf and was skipped; the loop zeroes the gradients and goes on."""
    draws = 1 + np.random.default_rng(0).standard_normal((2, 4, 30))
    skipped = np.concatenate([draws[0][:2], np.full((1, 30), np.inf)])
    steps = draws[0], skipped, draws[1]
    trace = micro_batch_trace(Vector(torch.zeros(30)), steps, lambda o: o.zero_grad())
    noise = draws.var(axis=1, ddof=1).sum(axis=1)
    np.testing.assert_allclose(values(trace, "grad_noise"), noise, rtol=1e-4)


# -- dead channels -----------------------------------------------------------------------------


def test_output_dead_window_gives_the_planted_share() -> None:
    """NaN until 16 steps were recorded, and no more once a channel has woken up."""
    model = small_net()
    bias = model[1].bias.data
    bias[:3] = -10

    def loss(step: int) -> Tensor:
        if step == 20:
            bias[0] = 0
        if step == 21:
            bias[:2] = torch.tensor([-10, 0])
        return loss_of(model, step)

    measures = ["output_dead_window", "output_dead_fraction"]
    trace = recorded(model, loss, sgd(model, 0.0), n_steps=40, measures=measures, cadence=1)
    window = values(trace, "output_dead_window", "2")
    want = np.repeat([np.nan, 3 / 4, 2 / 4, 1 / 4, 2 / 4], [15, 5, 1, 15, 4])
    np.testing.assert_array_equal(window, want)
    now = values(trace, "output_dead_fraction", "2")
    np.testing.assert_array_equal(now, np.repeat([3 / 4, 2 / 4, 2 / 4], [20, 1, 19]))


def test_a_channel_that_is_dead_in_one_pass_of_a_step_is_not_dead() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU())
    nn.init.eye_(model[0].weight)
    xs = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]])
    measures = ["output_dead_fraction"]
    trace = recorded(model, lambda i: model(xs[i : i + 1]).sum(), n_passes=2, measures=measures)
    assert values(trace, "output_dead_fraction", "1") == pytest.approx(1 / 3)
    assert values(trace, "output_dead_fraction", "0") == 0
