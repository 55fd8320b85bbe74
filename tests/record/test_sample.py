"""A sample of the batch: estimates and standard errors as by hand, unbiased and calibrated."""

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byhand import ByHand, assert_same_trace, batch, sgd, small_net
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradflow import Recorder, Trace
from gradflow.record import OUTPUT_MEASURES, Measure
from gradflow.record.measures import STANDARD_ERRORS
from gradflow.record.processes import Processes
from gradflow.record.sample import Sampler

M = 5
ESTIMATED = (
    "output_mean",
    "output_rms",
    "output_zero_fraction",
    "output_grad_norm",
    "output_grad_rms",
)


def value(trace: Trace, measure: str, site: str, step: int = 0) -> float:
    return float(trace.values[measure][step, trace.sites.index(site)])


def train(
    model: nn.Module, x: Tensor, n_steps: int = 1, lr: float = 0.0, **settings: Any
) -> Recorder:
    optimizer = sgd(model, lr)
    with Recorder(model, optimizer, measures=OUTPUT_MEASURES, **settings) as recorder:
        for _ in range(n_steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    return recorder


def images(n: int, seed: int = 1) -> Tensor:
    return batch(n, seed)[0]


# -- by hand -----------------------------------------------------------------------------------


def total(per_image: np.ndarray, drawn: Sequence[int]) -> tuple[float, float]:
    """The estimate of a sum over a finite population, and its variance: Cochran 1977, chapter 2."""
    n, m = len(per_image), len(drawn)
    t = per_image[list(drawn)]
    s2 = t.var(ddof=1) if m > 1 else 0.0
    return n * t.mean(), n**2 * (1 - m / n) * s2 / m


def pooled(passes: Sequence[np.ndarray], draws: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Over forward passes with draws of their own: (images, …) of each, summed over the images."""
    parts = [
        total(z.reshape(len(z), -1).sum(1), drawn) for z, drawn in zip(passes, draws, strict=True)
    ]
    return sum(t for t, _ in parts), sum(v for _, v in parts)


def expected(
    z: Sequence[np.ndarray], g: Sequence[np.ndarray], draws: Sequence[Sequence[int]]
) -> dict[str, float]:
    """The measures of one site from its outputs and their gradients, and the images drawn."""
    n = sum(one.size for one in z)
    mean, mean_v = pooled(z, draws)
    square, square_v = pooled([one**2 for one in z], draws)
    zeros, zeros_v = pooled([(one == 0).astype(float) for one in z], draws)
    grad, grad_v = pooled([one**2 for one in g], draws)
    seen = [one[list(drawn)] for one, drawn in zip(z, draws, strict=True)]
    by_channel = [np.moveaxis(one, 1, -1).reshape(-1, one.shape[1]) for one in seen]
    alive = np.any([(one != 0).any(0) for one in by_channel], axis=0)
    return {
        "output_mean": mean / n,
        "output_mean_se": mean_v**0.5 / n,
        "output_rms": (square / n) ** 0.5,
        "output_rms_se": square_v**0.5 / n / (2 * (square / n) ** 0.5),
        "output_zero_fraction": zeros / n,
        "output_zero_fraction_se": zeros_v**0.5 / n,
        "output_grad_norm": grad**0.5,
        "output_grad_norm_se": grad_v**0.5 / (2 * grad**0.5),
        "output_grad_rms": (grad / n) ** 0.5,
        "output_grad_rms_se": grad_v**0.5 / (2 * grad**0.5) / n**0.5,
        "output_max_abs": max(np.abs(one).max() for one in seen),
        "output_dead_fraction": 1 - alive.mean(),
        "output_nonfinite": 0.0,
        "output_grad_nonfinite": 0.0,
    }


def drawn(step: int, sizes: Sequence[int]) -> list[list[int]]:
    sampler = Sampler(M)
    sampler.begin_step(step)
    return [list(sampler.draw(n).images) for n in sizes]


def net_with_large_images() -> nn.Sequential:
    """Enough elements per image for the sums to be taken image by image."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.Flatten()
    )


NETS: dict[str, tuple[Callable[[], nn.Sequential], Callable[[int], Tensor]]] = {
    "small": (small_net, images),
    "small, channels last": (
        lambda: small_net().to(memory_format=torch.channels_last),
        lambda n: images(n).to(memory_format=torch.channels_last),
    ),
    "large": (net_with_large_images, lambda n: images(n).repeat(1, 1, 12, 12)[..., 5:, 5:]),
    "large, channels last": (
        net_with_large_images,
        lambda n: images(n).repeat(1, 1, 12, 12).to(memory_format=torch.channels_last),
    ),
    "float64": (lambda: small_net().double(), lambda n: images(n).double()),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("sizes", [[12], [12, 9, 4]], ids=["one pass", "three passes"])
def test_estimates_and_errors_are_those_of_the_drawn_images(name: str, sizes: list[int]) -> None:
    """Of the second step as well, in which the ReLU is measured in the read of its input."""
    make, inputs = NETS[name]
    model = make()
    optimizer, hand = sgd(model), ByHand(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Recorder(model, optimizer, sample=M, scaler=scaler) as recorder:
        for _ in range(2):
            for n in sizes:
                with hand.forward():
                    output = model(inputs(n))
                scaler.scale(output.square().mean()).backward()
            with hand.step(1024.0):
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    trace = recorder.trace
    assert recorder._outputs is not None
    assert recorder._outputs._before_relu, "the ReLU was measured in the read of its input"
    assert set(STANDARD_ERRORS) <= set(trace.measures)
    for step in range(2):
        for site, outputs in hand._outputs[step].items():
            z = [one.z.numpy() for one in outputs]
            g = [one.grads[0].numpy() / 1024 for one in outputs]
            for measure, want in expected(z, g, drawn(step, sizes)).items():
                got = value(trace, measure, site, step)
                slack = 1e-6 * float(np.sqrt(np.mean(z[0] ** 2)))
                assert got == pytest.approx(want, rel=2e-5, abs=slack), (measure, site, step)
            assert trace.sizes[trace.sites.index(site)] == sum(one.size for one in z)


def test_several_backward_passes_through_one_sample() -> None:
    """Their squares add image by image, which is no sum of independent variances."""
    model = nn.Sequential(nn.Linear(3, 4))
    optimizer, x = sgd(model), torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    weights = x.square().sum(1)
    with Recorder(model, optimizer, sample=M) as recorder:
        z = model(x).sum(1)
        (z * weights).sum().backward(retain_graph=True)
        (2 * z * weights).sum().backward()
        optimizer.step()
    square, variance = total(5 * 4 * weights.double().numpy() ** 2, drawn(0, [12])[0])
    assert value(recorder.trace, "output_grad_norm", "0") == pytest.approx(square**0.5, rel=1e-5)
    want = variance**0.5 / (2 * square**0.5)
    assert value(recorder.trace, "output_grad_norm_se", "0") == pytest.approx(want, rel=1e-5)


def test_two_processes_add_their_sums_and_variances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the same share: n, sums and variances double, and the gradients halve."""
    alone = train(small_net(), images(12), sample=M).trace
    monkeypatch.setattr(
        Processes,
        "gather",
        lambda self, step: replace(step, of_passes=step.of_passes.repeat(2, 1)),
    )
    both = train(small_net(), images(12), sample=M).trace
    factors = {"output_mean": 1.0, "output_rms": 1.0, "output_zero_fraction": 1.0}
    factors |= {f"{name}_se": 0.5**0.5 for name in factors}
    factors |= {"output_grad_norm": 0.5**0.5, "output_grad_norm_se": 0.5}
    for measure, factor in factors.items():
        want = factor * alone.values[measure]
        np.testing.assert_allclose(both.values[measure], want, rtol=1e-9, err_msg=measure)


# -- what an estimate is worth -------------------------------------------------------------------


def test_estimates_are_unbiased_and_their_errors_calibrated() -> None:
    """500 draws of 20 of 60 images: 95 % intervals hold the value of the whole batch as often."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    whole = train(model, x).trace
    trace = train(model, x, n_steps=500, sample=20).trace
    for measure in ESTIMATED:
        table = trace.select(measure)
        errors = trace.select(f"{measure}_se").values
        for site, got, error in zip(table.sites, table.values.T, errors.T, strict=True):
            truth = value(whole, measure, site)
            if truth == 0:
                assert not got.any()
                continue
            covered = np.mean(np.abs(got - truth) < 1.96 * error)
            assert 0.90 <= covered <= 0.99, (measure, site, covered)
            power = 2 if measure.endswith(("rms", "norm")) else 1  # the square is unbiased
            estimates = got**power
            bias = abs(estimates.mean() - truth**power)
            assert bias < 3 * estimates.std(ddof=1) / len(got) ** 0.5, (measure, site)


@pytest.mark.parametrize("size", [12, 100])
def test_a_sample_of_all_images_is_the_whole_batch(size: int) -> None:
    whole = train(small_net(), images(12), 3, lr=0.1).trace
    trace = train(small_net(), images(12), 3, lr=0.1, sample=size).trace
    assert set(trace.values) == {*whole.values, *STANDARD_ERRORS}
    for measure in STANDARD_ERRORS:
        assert (trace.select(measure).values == 0).all()
        assert trace.select(measure).sites == trace.select(measure.removesuffix("_se")).sites
    values = {name: trace.values[name] for name in whole.values}
    assert_same_trace(replace(trace, values=values), whole, rtol=1e-12)


class TimeFirst(nn.Module):
    """Outputs with the batch in dimension 0, in dimension 1, and without one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.position = nn.Linear(3, 4), nn.Embedding(6, 4)
        self.rnn, self.head = nn.GRU(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.embed(x) + self.position(torch.arange(6))  # (12, 6, 4)
        hidden, _ = self.rnn(z.transpose(0, 1))  # (6, 12, 4)
        return self.head(hidden[-1])


def test_what_has_no_batch_in_front_is_measured_whole() -> None:
    x = torch.randn(12, 6, 3, generator=torch.Generator().manual_seed(0))
    whole, trace = train(TimeFirst(), x).trace, train(TimeFirst(), x, sample=M).trace
    for site in ("embed", "position", "rnn", "head"):
        is_whole = site in ("position", "rnn")
        for measure in ("output_mean", "output_rms", "output_grad_norm"):
            same = value(trace, measure, site) == pytest.approx(value(whole, measure, site))
            assert same == is_whole, (measure, site)
            assert (value(trace, f"{measure}_se", site) == 0) == is_whole
        assert value(trace, "output_rms_se", "embed") > 0


def test_nan_is_counted_in_the_sample_and_not_scaled() -> None:
    (seen,) = drawn(0, [12])
    unseen = next(image for image in range(12) if image not in seen)
    for image, n in ((seen[0], 4), (unseen, 0)):
        x = torch.ones(12, 3)
        x[image] = torch.nan
        trace = train(nn.Sequential(nn.Linear(3, 4)), x, sample=M).trace
        assert value(trace, "output_nonfinite", "0") == n
        assert np.isnan(value(trace, "output_mean", "0")) == bool(n)
        assert np.isnan(value(trace, "output_mean_se", "0")) == bool(n)


def test_measures_of_the_users_own_are_given_the_sample() -> None:
    n_images = Measure("n", "output", "images", "1", function=lambda z: torch.tensor(len(z)))
    n_grads = Measure(
        "m", "output gradient", "images", "1", function=lambda g: g.new_tensor(len(g))
    )
    model = small_net()
    optimizer = sgd(model)
    with Recorder(model, optimizer, measures=[n_images, n_grads], sample=M) as recorder:
        model(images(12)).sum().backward()
        optimizer.step()
    assert set(recorder.trace.values) == {"n", "m"}
    assert value(recorder.trace, "n", "0") == value(recorder.trace, "m", "0") == M


# -- the draw ----------------------------------------------------------------------------------


def test_draws_are_functions_of_step_pass_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    first = drawn(0, [50, 50])
    assert drawn(0, [50, 50]) == first, "repeats"
    assert first[0] != first[1], "another pass"
    assert drawn(1, [50]) != first[:1], "another step"
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    assert drawn(0, [50]) != first[:1], "another process"


def test_every_image_is_drawn_equally_often_and_once_at_a_time() -> None:
    draws = [drawn(step, [20])[0] for step in range(2000)]
    assert all(len(set(draw)) == M for draw in draws)
    counts = np.bincount(np.concatenate(draws), minlength=20)
    p = M / 20
    assert np.abs(counts - 2000 * p).max() < 4 * (2000 * p * (1 - p)) ** 0.5


def test_training_stays_bit_identical() -> None:
    finals = []
    for sample in (None, 3):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        model = nn.Sequential(*small_net(), nn.Dropout())
        for _ in range(3):
            train(model, images(12), 2, lr=0.1, sample=sample)
        drawn_next = torch.rand(1), torch.tensor(random.random()), torch.tensor(np.random.rand())
        finals.append([*model.state_dict().values(), *drawn_next])
    assert all(torch.equal(one, other) for one, other in zip(*finals, strict=True))


@pytest.mark.parametrize("wrong", [0, 1, -3, 2.5, True, "8"])
def test_a_wrong_size_is_refused(wrong: Any) -> None:
    model = small_net()
    with pytest.raises(ValueError, match="Expected `sample` to be a whole number of at least 2"):
        Recorder(model, sgd(model), sample=wrong)


# -- together with the rest --------------------------------------------------------------------


def test_copies_and_a_second_recorder() -> None:
    model = small_net()
    optimizer = sgd(model)
    first = Recorder(model, optimizer, sample=M)
    second = Recorder(model, optimizer, sample=M)
    for _ in range(2):
        copy.deepcopy(model)(images(7)).sum().backward()
        model(images(12)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    first.close()
    second.close()
    assert_same_trace(first.trace, second.trace, rtol=1e-12)
    assert value(first.trace, "output_rms_se", "2", 1) > 0


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_measures_the_same_images(use_reentrant: bool) -> None:
    class Net(nn.Module):
        def __init__(self, segments: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU())
            self.segments = segments

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            if self.segments:
                return checkpoint(self.second, x, use_reentrant=use_reentrant)
            return self.second(x)

    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    plain, saving = (
        train(Net(segments), x, 2, lr=0.1, sample=M).trace for segments in (False, True)
    )
    assert set(plain.sites) == set(saving.sites)
    for measure in plain.values:
        for site in plain.select(measure).sites:
            want = value(plain, measure, site, 1)
            got = value(saving, measure, site, 1)
            assert got == pytest.approx(want, rel=1e-6, nan_ok=True), (measure, site)


def test_the_documented_table_of_standard_errors_equals_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "measures.md").read_text(encoding="utf-8")
    section = text.split("## Standard errors of a sample\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows] == [
        [m.name, m.of, m.formula, m.unit, m.source] for m in STANDARD_ERRORS.values()
    ]
