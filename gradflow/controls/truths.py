"""Controls: networks whose rate is known, and whether the instrument finds it.

The numbers C1 to C7 are those of the documentation's page on controls.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import nan, sqrt
from typing import Any

import numpy as np
from torch import nn

from gradflow.analysis.layers import body, main_path
from gradflow.analysis.rates import Label, trace_rate
from gradflow.analysis.thresholds import HIT_RATE
from gradflow.architectures import Init
from gradflow.controls import closed_forms, networks
from gradflow.controls.networks import PRECISE, KnownNetwork, record
from gradflow.typed import to_json

Progress = Callable[[int, int], None]  # how many networks are done, of how many

ENDS = 3  # layers that a BatchNorm or sigmoid network needs to reach its fixed point, and to leave


@dataclass(frozen=True, kw_only=True)
class Control(KnownNetwork):
    """A case whose growth λ is known: the factor of the squared gradient norm per layer.

    The mean over seeds must lie within `rtol` of it, relative, plus `n_errors` standard errors.
    """

    truth: str  # a sentence with the formula
    source: str
    expected: float  # λ, no unit
    why: str  # of the tolerance
    rtol: float = 0.0
    n_errors: float = 0.0
    # Layers at the input end and at the output end that the truth does not hold for.
    skipped: tuple[int, int] = (0, 0)
    n_seeds: int = 3

    def __post_init__(self) -> None:
        if (self.rtol > 0) == (self.n_errors > 0):
            raise ValueError(
                f"Expected either `rtol` or `n_errors` above 0, but {self.name!r} has {self.rtol} "
                f"and {self.n_errors}. Set one."
            )


@dataclass(frozen=True)
class Measured:
    """What one seed gave: λ between the skipped ends, and the label of the whole network."""

    growth: float
    label: Label


@dataclass(frozen=True)
class ControlResult:
    """A control over its seeds."""

    control: Control
    mean: float  # of λ
    standard_error: float  # NaN for a single seed
    n_seeds: int
    n_labels_right: int
    seconds: float

    @property
    def allowed(self) -> float:
        """How far the mean may lie from the truth, as a difference in λ."""
        if self.control.rtol > 0:
            return self.control.rtol * self.control.expected
        return self.control.n_errors * self.standard_error

    @property
    def passed(self) -> bool:
        """Whether λ is right, and the label on as many seeds as the gate asks for."""
        is_right = abs(self.mean - self.control.expected) <= self.allowed
        return is_right and self.n_labels_right >= HIT_RATE.value * self.n_seeds

    def to_json(self) -> dict[str, Any]:
        """Plain types; None stands for the standard error of a single seed."""
        of_control = ("name", "truth", "source", "expected", "why", "label")
        of_result = ("mean", "standard_error", "allowed", "n_labels_right", "n_seeds", "passed",
                     "seconds")  # fmt: skip
        content = {name: getattr(self.control, name) for name in of_control}
        content |= {name: getattr(self, name) for name in of_result}
        return dict(to_json(content))


def measure(control: Control, seed: int) -> Measured:
    """Record the network of `seed` and read its rate."""
    trace = record(control, seed)
    layers = body(main_path(trace))
    interior = layers[control.skipped[0] : len(layers) - control.skipped[1]]
    growth = trace_rate(trace, "output_gradient", layers=interior).growth
    return Measured(growth, trace_rate(trace, "output_gradient").label)


def run(
    controls: Iterable[Control] | None = None,
    n_seeds: int | None = None,
    progress: Progress | None = None,
) -> list[ControlResult]:
    """Measure controls, by default all of `CONTROLS` with as many seeds as each asks for."""
    chosen = list(CONTROLS.values() if controls is None else controls)
    counts = [control.n_seeds if n_seeds is None else n_seeds for control in chosen]
    results: list[ControlResult] = []
    n_done = 0
    for control, n in zip(chosen, counts, strict=True):
        start, measured = time.perf_counter(), []
        for seed in range(n):
            measured.append(measure(control, seed))
            n_done += 1
            if progress is not None:
                progress(n_done, sum(counts))
        results.append(_result(control, measured, time.perf_counter() - start))
    return results


def _result(control: Control, measured: Sequence[Measured], seconds: float) -> ControlResult:
    growths = np.array([one.growth for one in measured])
    n = len(growths)
    error = float(growths.std(ddof=1)) / sqrt(n) if n > 1 else nan
    n_right = sum(one.label == control.label for one in measured)
    return ControlResult(control, float(growths.mean()), error, n, n_right, seconds)


# -- the controls ------------------------------------------------------------------------------

NARROW = 128  # units, of networks whose closed form holds at any width

_EXACT = "exact in real numbers; float64 rounds to 1e-16 per operation"
_SAMPLED = "the mean over seeds of what is random by its closed form: three standard errors"
_WIDE = "the formula is that of infinite width; 512 units leave about a per cent"


def _orthogonal(gain: float, label: Label) -> Control:
    return Control(
        f"C1 linear, orthogonal, gain {gain:g}",
        partial(networks.orthogonal_linear, 33, 16, gain), (4, 16), label, PRECISE,
        truth="every layer multiplies the gradient by exactly g: λ = g²",
        source="‖gQᵀδ‖ = g‖δ‖", expected=gain**2, why=_EXACT, rtol=1e-9,
    )  # fmt: skip


def _sigmoid(init: networks.SigmoidInit, weights: float, biases: float) -> Control:
    what = "Xavier" if init == "xavier" else "PyTorch's default"
    return Control(
        f"C4 sigmoid, {what}",
        partial(networks.sigmoid_mlp, 12, 512, init), (8, 512), "vanishing", PRECISE,
        truth="λ = χ = σ_w² E[φ′(z)²] at the fixed point of z's variance",
        source="Schoenholz et al. 2017, arXiv:1611.01232",
        expected=closed_forms.sigmoid_rate(weights, biases) ** 2,
        why=_WIDE, rtol=0.05, skipped=(ENDS, ENDS),
    )  # fmt: skip


IMAGES = (16, 3, 64, 64)  # for Plain-34
STEM = (1, 0)
# λ of Plain-34 for such images: experiments/plain_34_theory.py derives it pixel by pixel.
WITHOUT_NORM: dict[Init, float] = {
    "torch-default": 0.1318814890441882, "kaiming": 0.7365748551681753,
}  # fmt: skip
WITH_NORM = 1.401304191300718


def _plain_34_without_norm(what: str, init: Init) -> Control:
    return Control(
        f"C6 Plain-34 without BatchNorm, {what}",
        partial(networks.plain_34_without_norm, init), IMAGES, "vanishing",
        truth="λ = ½ σ_w² C_in times what zero padding leaves of 9 neighbours, pixel by pixel",
        source="derived; see experiments/plain_34_theory.py",
        expected=WITHOUT_NORM[init],
        why="64 to 512 channels: five networks leave about a per cent", rtol=0.05, skipped=STEM,
        n_seeds=5,
    )  # fmt: skip


CONTROLS: dict[str, Control] = {
    control.name: control
    for control in (
        _orthogonal(0.5, "vanishing"),
        _orthogonal(1.0, "healthy"),
        _orthogonal(1.5, "exploding"),
        Control(
            "C2 linear, Gaussian",
            partial(networks.gaussian_linear, 33, NARROW), (1, NARROW), "healthy", PRECISE,
            truth="λ = exp(E ln(χ²_n / n)): about 1 − 1/n",
            source="the χ² distribution of ‖Wᵀδ‖²/‖δ‖²",
            expected=closed_forms.expected_growth_linear(NARROW),
            why=_SAMPLED, n_errors=3, n_seeds=20,
        ),
        Control(
            "C2 ReLU, He",
            partial(networks.relu_mlp, 33, NARROW, 1.0), (1, NARROW), "healthy", PRECISE,
            truth="λ = exp(E ln(2 χ²_K / n)), K ~ Binomial(n, ½): about 1 − 5/(2n)",
            source="Hanin & Nica 2019, arXiv:1812.05994",
            expected=closed_forms.expected_growth_relu(NARROW, 1.0),
            why=_SAMPLED, n_errors=3, n_seeds=20,
        ),
        _sigmoid("xavier", 1.0, 0.0),
        _sigmoid("torch-default", 1 / 3, 1 / (3 * 512)),
        Control(
            "C5 BatchNorm and ReLU, batch 16",
            partial(networks.batchnorm_mlp, 20, 512), (16, 512), "exploding", PRECISE,
            truth="λ = (d/2 + k − μ) / (μ (d − 2)), d = B − 1; see expected_growth_bn_relu",
            source="Yang et al. 2019, arXiv:1902.08129, eq. 25",
            expected=closed_forms.expected_growth_bn_relu(16),
            why=_WIDE, rtol=0.05, skipped=(ENDS, ENDS), n_seeds=10,
        ),
        Control(
            "C5 BatchNorm, linear, batch 50",
            partial(networks.batchnorm_mlp, 36, 256, activation=nn.Identity), (50, 256), "healthy",
            PRECISE,
            truth="λ = (B − 2) / (B − 3)",
            source="Yang et al. 2019, arXiv:1902.08129",
            expected=closed_forms.expected_growth_bn_linear(50),
            why="2 % tell 48/47 from 1; 256 units and ten networks leave half a per cent",
            rtol=0.02, skipped=(ENDS, ENDS), n_seeds=10,
        ),
        Control(
            "C6 Plain-34 with BatchNorm",
            partial(networks.plain_34_with_norm, "kaiming"), IMAGES, "exploding",
            truth="λ = E[φ′²] / Var[φ] = π / (π − 1) but for zero padding, pixel by pixel",
            source="derived; see experiments/plain_34_theory.py. Without padding Yang et al. 2019, "
            "arXiv:1902.08129, eq. 25",
            expected=WITH_NORM,
            why="to first order in 1/N, and 16 images of 2×2 pixels are only N = 64", rtol=0.03,
            skipped=STEM, n_seeds=5,
        ),
        _plain_34_without_norm("PyTorch's default", "torch-default"),
        _plain_34_without_norm("He", "kaiming"),
        Control(
            "C7 residual, last γ = 0",
            partial(networks.identity_residual, 10, 32), (16, 32), "healthy", PRECISE,
            truth="every block is the identity: λ = 1",
            source="∂(x + 0)/∂x = 1", expected=1.0,
            why="exact: nothing is multiplied", rtol=1e-6,
        ),
    )
}  # fmt: skip
