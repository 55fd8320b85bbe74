"""The sums of Adam's moments against float64 NumPy, compiled and by PyTorch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradflow.record import Recorder
from gradflow.record.sums import adam_sums
from gradflow.record.torch_sums import PIECE, Moments

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MEASURES = ["adam_attenuation", "adam_update_rms"]


def by_numpy(moments: Moments) -> list[float]:
    m, v = (
        (torch.view_as_real(x) if x.is_complex() else x).double().numpy()
        for x in (moments.first, moments.second)
    )
    n, (beta1, beta2) = float(moments.step), map(float, moments.betas)
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(v / (1 - beta2**n))
        below = root + moments.epsilon
        return [(root / below).sum(), ((m / (1 - beta1**n) / below) ** 2).sum()]


@st.composite
def all_moments(draw: st.DrawFn) -> Moments:
    """Of any size, type and scale; the first may lie in memory in another order."""
    shape = draw(st.sampled_from([(), (1,), (15,), (33,), (5, 7), (2, 3, 5, 3), (0,), (4099,)]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([1.0, 1e-8, 1e-15, 1e-21, 1e12]))
    special = draw(st.sampled_from([(), (0.0,), (np.nan,), (np.inf, 0.0)]))
    dtype = draw(st.sampled_from(DTYPES))
    values = random.standard_normal((2, *shape)) * scale
    if special:
        values = np.where(random.random((2, *shape)) < 0.2, random.choice(special), values)
    m, v = torch.tensor(values[0]).to(dtype), torch.tensor(values[1] ** 2).to(dtype)
    if draw(st.booleans()) and m.dim() == 4:
        m = m.contiguous(memory_format=torch.channels_last)
    step = draw(st.sampled_from([1, 7.0, torch.tensor(3.0), torch.tensor(100_000.0)]))
    betas = draw(st.sampled_from([(0.9, 0.999), (0.5, torch.tensor(0.25))]))
    return Moments(m, v, step, betas, draw(st.sampled_from([1e-8, 1e-15, 1.0])))


@settings(max_examples=50, deadline=None)
@given(batch=st.lists(all_moments(), max_size=3))
def test_adam_sums_equal_numpy(engine: str, batch: list[Moments]) -> None:
    sums = adam_sums(batch)
    assert (sums.shape, sums.dtype) == ((len(batch), 2), torch.float64)
    for got, moments in zip(sums.tolist(), batch, strict=True):
        np.testing.assert_allclose(got, by_numpy(moments), rtol=2e-6, atol=0)


@pytest.mark.parametrize("epsilon", [1e-8, 0.0, 1e-60])
def test_many_elements_in_tiles_shares_and_pieces(engine: str, epsilon: float) -> None:
    n, generator = 2 * PIECE + 4321, torch.Generator().manual_seed(0)
    v = torch.randn(n, generator=generator).square().mul(1e-6).clamp(min=1e-12)
    moments = Moments(torch.randn(n, generator=generator), v, 5, (0.9, 0.999), epsilon)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert adam_sums([moments])[0].tolist() == pytest.approx(by_numpy(moments), rel=1e-6)
    finally:
        torch.set_num_threads(before)


def test_complex_moments_are_twice_as_many_real_ones(engine: str) -> None:
    values = torch.randn(2, 3, 5, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    second = torch.complex(values[1].real ** 2, values[1].imag ** 2)
    moments = Moments(values[0], second, 2, (0.9, 0.999), 1e-8)
    assert adam_sums([moments])[0].tolist() == pytest.approx(by_numpy(moments), rel=1e-6)


def test_before_the_first_step_there_is_no_correction(engine: str) -> None:
    """A fused optimizer makes its state, and may then skip its first step."""
    zeros = torch.zeros(3)
    assert adam_sums([Moments(zeros, zeros, torch.tensor(0.0), (0.9, 0.999), 1e-8)]).isnan().all()


def by_hand(optimizer: torch.optim.Optimizer, parameter: Tensor) -> list[float]:
    """Both measures from the optimizer's state, in float64."""
    group, state = optimizer.param_groups[0], optimizer.state[parameter]
    second = state.get("max_exp_avg_sq", state["exp_avg_sq"])
    moments = Moments(state["exp_avg"], second, state["step"], group["betas"], group["eps"])
    attenuation, square = by_numpy(moments)
    n = parameter.numel() * (2 if parameter.is_complex() else 1)
    return [attenuation / n, (square / n) ** 0.5]


@pytest.mark.parametrize(
    "options",
    [{}, {"amsgrad": True}, {"foreach": True}, {"fused": True}, {"eps": 1e-3, "betas": (0.5, 0.9)}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
def test_the_measures_are_those_of_the_optimizers_state(
    engine: str, dtype: torch.dtype, options: dict
) -> None:
    if options.get("fused") and dtype.is_complex:
        pytest.skip("PyTorch has no fused step of complex numbers")
    generator = torch.Generator().manual_seed(0)
    model = nn.Module()
    model.w = nn.Parameter(torch.ones(6, 5, dtype=dtype))
    model.b = nn.Parameter(torch.ones(7, dtype=dtype))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, **options)
    with Recorder(model, optimizer, measures=MEASURES) as recorder:
        for _ in range(4):
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.grad = (noise * 1e-4).to(dtype)
            optimizer.step()
        trace = recorder.trace
    for name, parameter in model.named_parameters():
        column = trace.sites.index(name)
        got = [trace.values[measure][-1, column] for measure in MEASURES]
        assert got == pytest.approx(by_hand(optimizer, parameter), rel=1e-5)
