"""The sums and measures against closed forms and float64 NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradflow.record import MEASURES, measures

LAYOUTS = ["contiguous", "channels_last", "sliced", "transposed"]


def in_layout(x: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "sliced":
        return torch.stack([x, x * 0 + 7], dim=-1)[..., 0]
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    return x


def output_measures(x: torch.Tensor, channel_dim: int = 1) -> dict[str, float]:
    sums = measures.output_sums(x, channel_dim).double().numpy()[np.newaxis]
    return measures.finish_output(sums, np.array([x.numel()]), np.array([x.shape[channel_dim]]))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 5)] * 4),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_output_measures_equal_numpy_in_float64(shape, layout, dtype, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).to(dtype)
    x = x * (torch.rand(shape, generator=generator) < 0.6)
    x[:, 0] = 0  # a dead channel
    x = in_layout(x, layout)
    want = x.double().numpy()
    got = output_measures(x)
    n_dead = int((np.abs(want).max(axis=(0, 2, 3)) == 0).sum())
    assert got["output_mean"] == pytest.approx(want.mean(), rel=1e-5, abs=1e-7)
    assert got["output_rms"] == pytest.approx(np.sqrt((want**2).mean()), rel=1e-5)
    assert got["output_zero_fraction"] == pytest.approx((want == 0).mean(), abs=1e-6)
    assert got["output_dead_fraction"] == pytest.approx(n_dead / shape[1], abs=1e-6)
    assert got["output_max_abs"] == np.abs(want).max()
    assert got["output_nonfinite"] == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weight_layout", LAYOUTS)
def test_parameter_sums_whatever_the_layouts(layout: str, weight_layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    grad = in_layout(torch.randn(6, 5, 3, 3, generator=generator), layout)
    weight = in_layout(torch.randn(6, 5, 3, 3, generator=generator), weight_layout)
    w, g = weight.double().numpy(), grad.double().numpy()
    want = [(w**2).sum(), (g**2).sum(), 0, (w * g).sum()]
    assert measures.parameter_sums(weight, grad).tolist() == pytest.approx(want, rel=1e-5)


def test_norm_of_millions_of_values_keeps_six_digits() -> None:
    """`vector_norm` on a CPU is off by 1e-4 here: float32 sums must be taken in pieces."""
    x = torch.randn(6_000_000, generator=torch.Generator().manual_seed(0))
    want = np.linalg.norm(x.double().numpy())
    got = measures.finish_gradient(
        measures.gradient_sums(x).double().numpy()[np.newaxis], np.array([x.numel()])
    )
    assert got["output_grad_norm"] == pytest.approx(want, rel=1e-6)


def test_denormal_and_huge_values_are_finite() -> None:
    """Squares that overflow float32 are summed in float64, and nothing is called non-finite."""
    got = output_measures(torch.tensor([[1e30, -3e30]]))
    assert got["output_rms"] == pytest.approx(np.sqrt(5) * 1e30, rel=1e-6)
    assert (got["output_nonfinite"], got["output_max_abs"]) == (0, pytest.approx(3e30))
    assert output_measures(torch.tensor([[1e-40, 0.0]]))["output_zero_fraction"] == 0.5


def test_nonfinite_values_are_counted_and_not_dropped() -> None:
    x = torch.tensor([[1.0, float("nan")], [float("inf"), -float("inf")]])
    got = output_measures(x)
    assert got["output_nonfinite"] == 3
    assert np.isnan(got["output_mean"])
    sums = measures.parameter_sums(torch.ones(3), torch.tensor([1.0, float("nan"), float("inf")]))
    assert sums[2] == 2
    assert sums[0] == 3


def test_sparse_gradients_equal_dense_ones() -> None:
    dense = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    want = measures.parameter_sums(weight, dense)
    assert torch.equal(measures.parameter_sums(weight, dense.to_sparse()), want)


def test_measures_pool_over_the_passes_of_an_accumulated_step() -> None:
    """Two halves of a batch give the measures of the whole batch."""
    x = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)).relu()
    parts = [x[:3], x[3:]]
    sums = np.stack([measures.output_sums(part, 1).double().numpy() for part in parts])
    n = np.array([part.numel() for part in parts])
    pooled = measures.finish_output(sums, n, np.array([4, 4]))
    assert pooled == pytest.approx(output_measures(x), rel=1e-5)
    grads = np.stack([measures.gradient_sums(part).double().numpy() for part in parts])
    got = measures.finish_gradient(grads, n)
    assert got["output_grad_norm"] == pytest.approx(x.double().norm().item(), rel=1e-6)
    rms = x.double().square().mean().sqrt().item()
    assert got["output_grad_rms"] == pytest.approx(rms, rel=1e-6)


def test_every_measure_is_described_and_every_description_is_computed() -> None:
    one = np.ones(1)
    computed = {
        **measures.finish_output(np.ones((1, 6)), one, one),
        **measures.finish_gradient(np.ones((1, 2)), one),
        **measures.finish_parameter(np.ones(4), 1.0),
    }
    assert set(computed) == set(MEASURES)
    assert all(m.formula and m.unit and m.of for m in MEASURES.values())
