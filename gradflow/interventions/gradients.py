"""Interventions on the gradients, right before the optimizer's step.

A layer is what `belonging` says: its weight, its norm, and in a residual network the projection of
the block that it ends. Norms of gradients are those of the layer's weight.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from gradflow.analysis.findings import Changes
from gradflow.analysis.profile import GRADIENT_SIZES
from gradflow.examine.path import belonging
from gradflow.interventions.intervention import Check, CheckInputs, GradientChange
from gradflow.interventions.layers import ALL, OfLayers, chosen_layers
from gradflow.record.trace import Trace

# Records are float32, whose numbers lie 1.2e-7 apart, and the norm that they hold was summed in
# another order than ours. A factor this close to 1 is taken as 1, so that a network that replays
# its own profile stays what it was to the last bit.
SNAP = 1e-6

# The norm of a scaled float32 gradient differs from the scaled norm by rounding alone, also where
# small elements become denormal.
NORM_TOLERANCE = 1e-3

Size = Literal["scale_invariant", "gradient_rms"]


@dataclass(frozen=True)
class GradientScale(OfLayers):
    """Multiply the gradients of `layers` by `factor` before every step.

    AdamW divides by the gradient's own size, so it must not mind (as long as factor · rms(g) stays
    far above its eps of 1e-8); under SGD the step of these layers is multiplied by `factor`.
    """

    name: ClassVar[str] = "gradient_scale"
    changes: ClassVar[Changes] = "gradients"
    no_dose = {"factor": 1.0}
    layers: str = ALL
    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isfinite(self.factor) and self.factor > 0):
            raise ValueError(
                f"Expected `factor` to be a finite number above 0, but got {self.factor}. "
                "To stop layers from learning, use freeze(layers=…)."
            )

    def describe(self) -> str:
        return f"The gradients of layers {self.layers} are multiplied by {self.factor:g}."

    def gradient_change(self, model: nn.Module, arch: str, seed: int) -> GradientChange:
        layers = chosen_layers(model, self.layers)

        def factors(step: int, norms: Tensor) -> Tensor:
            return torch.full_like(norms, self.factor)

        return LayerScaling(model, layers, factors, expected=self.factor)


@dataclass(frozen=True)
class Transplant(OfLayers):
    """Give the gradients of `layers` the sizes that another run recorded at the same step.

    With the recorded size s*_l(t) of layer l at step t, the gradient of the layer is multiplied by
    s*_l(t) / s_l(t), where `size` is `scale_invariant`, ŝ = ‖g‖ ‖w‖ / √n, or `gradient_rms`,
    ‖g‖ / √n. Directions within a layer stay. A step that was not recorded takes the sizes of the
    last recorded one before it. No layer is the sham; replaying a network's own profile is the
    stricter one. `profile` is the folder of a recorded network; `{arch}` and
    `{seed}` in it stand for those of the network in training.
    """

    name: ClassVar[str] = "transplant"
    changes: ClassVar[Changes] = "gradients"
    profile: str
    layers: str = ALL
    size: Size = "scale_invariant"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size not in get_args(Size):
            raise ValueError(f"Expected `size` in {get_args(Size)}, but got {self.size!r}.")
        if not self.profile:
            raise ValueError("Expected `profile` to be the folder of a recorded network.")

    def describe(self) -> str:
        return (
            f"The gradients of layers {self.layers} get, step by step, the size "
            f"({GRADIENT_SIZES[self.size].symbol}) that {self.profile} recorded."
        )

    def gradient_change(self, model: nn.Module, arch: str, seed: int) -> GradientChange:
        layers = chosen_layers(model, self.layers)
        folder = Path(self.profile.replace("{arch}", arch).replace("{seed}", str(seed)))
        steps, sizes = _recorded(folder, self.size, layers)
        weights = [model.get_parameter(f"{layer}.weight") for layer in layers]

        def factors(step: int, norms: Tensor) -> Tensor:
            ours = norms * _per_norm(weights, self.size)
            # Of the last recorded step that is not after this one, else of the first.
            place = max(0, int(np.searchsorted(steps, step, side="right")) - 1)
            wanted = sizes[place].to(norms.device)
            ratio = torch.where(ours > 0, wanted / ours, 1.0)
            return torch.where((ratio - 1).abs() < SNAP, 1.0, ratio)

        return LayerScaling(model, layers, factors, expected=None)


@dataclass(frozen=True)
class Freeze(OfLayers):
    """Leave `layers` as they were initialised: the optimizer gets no gradient for them.

    So there is no weight decay either. Gradients still pass through to the layers before; running
    statistics of BatchNorm go on, since they are no weights.
    """

    name: ClassVar[str] = "freeze"
    changes: ClassVar[Changes] = "gradients"
    layers: str = ALL

    def describe(self) -> str:
        return f"Layers {self.layers} keep their initial weights."

    def gradient_change(self, model: nn.Module, arch: str, seed: int) -> GradientChange:
        layers = chosen_layers(model, self.layers)
        frozen = set(belonging(model, layers))
        return _Freezing([p for name, p in model.named_parameters() if name in frozen])

    def checks(self, evidence: CheckInputs) -> list[Check]:
        names = belonging(evidence.trained, chosen_layers(evidence.trained, self.layers))
        share = changed_fraction(evidence.initial, evidence.trained, names)
        return [Check("share of the frozen weights whose bits changed", share, expected=0.0)]


def changed_fraction(one: nn.Module, other: nn.Module, names: Sequence[str]) -> float:
    """The share of elements that differ of the parameters among `names`; 0 of none."""
    theirs = dict(other.named_parameters())
    pairs = [(p, theirs[name]) for name, p in one.named_parameters() if name in set(names)]
    n_changed = sum(int((ours.detach() != p.detach()).sum()) for ours, p in pairs)
    n_all = sum(p.numel() for p, _ in pairs)
    return n_changed / n_all if n_all else 0.0


@dataclass(frozen=True)
class _Freezing(GradientChange):
    parameters: Sequence[nn.Parameter]

    def before_step(self, step: int, loss_scale: Tensor | None) -> None:
        for parameter in self.parameters:
            parameter.grad = None


class LayerScaling(GradientChange):
    """Multiplies the gradients of each layer by a factor of its own, and watches their norms.

    `factors(step, norms)` gives the factors (layers,) from the true norms (layers,) of the
    gradients of the layers' weights. Nothing is copied to the host before `checks`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        factors: Callable[[int, Tensor], Tensor],
        expected: float | None,
    ) -> None:
        parameters = dict(model.named_parameters())
        self._layers, self._factors, self._expected = list(layers), factors, expected
        self._weights = [parameters[f"{layer}.weight"] for layer in layers]
        self._members = [
            [parameters[name] for name in belonging(model, [layer]) if name in parameters]
            for layer in layers
        ]
        device = self._weights[0].device if layers else None
        none = torch.zeros(len(layers), dtype=torch.float64, device=device)
        self._n_seen = none.long()  # (layers,): steps with a usable gradient
        self._log_ratio = none  # (layers,): Σ ln(norm after / norm before)
        self._worst = none.sum()  # largest |norm after / intended − 1|

    @torch.no_grad()
    def before_step(self, step: int, loss_scale: Tensor | None) -> None:
        if not self._layers:
            return
        scale = 1.0 if loss_scale is None else loss_scale.double().reshape(())
        before = self._norms() / scale
        factors = self._factors(step, before)
        for members, factor in zip(self._members, factors, strict=True):
            for parameter in members:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor.to(parameter.grad.dtype))
        self._watch(before, before * factors, self._norms() / scale)

    def _norms(self) -> Tensor:
        """(layers,) float64; 0 where a layer has no gradient."""
        return torch.stack(
            [
                torch.linalg.vector_norm(
                    w.new_zeros(()) if w.grad is None else w.grad, dtype=torch.float64
                )
                for w in self._weights
            ]
        )

    def _watch(self, before: Tensor, intended: Tensor, after: Tensor) -> None:
        """A step with inf or NaN in its gradients is skipped by the GradScaler, and here."""
        usable = torch.isfinite(before) & torch.isfinite(after) & (before > 0) & (after > 0)
        self._n_seen = self._n_seen + usable
        self._log_ratio = self._log_ratio + torch.where(usable, (after / before).log(), 0.0)
        error = torch.where(usable, (after / intended - 1).abs(), 0.0).max()
        self._worst = torch.maximum(self._worst, error)

    def state_dict(self) -> dict[str, Tensor]:
        return {"n_seen": self._n_seen, "log_ratio": self._log_ratio, "worst": self._worst}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._n_seen = state["n_seen"].to(self._n_seen.device)
        self._log_ratio = state["log_ratio"].to(self._log_ratio.device)
        self._worst = state["worst"].to(self._worst.device)

    def checks(self) -> list[Check]:
        if not self._n_seen.any():
            return []
        means = (self._log_ratio / self._n_seen).tolist()
        ratios = {layer: exp(mean) for layer, mean in zip(self._layers, means, strict=True)}
        error = Check(
            "largest relative error of a gradient norm against the intended one",
            float(self._worst),
            expected=0.0,
            tolerance=NORM_TOLERANCE,
        )
        typical = exp(float(np.nanmean(means))) if np.isfinite(means).any() else float("nan")
        ratio = Check(
            "gradient norm after over before, geometric mean over layers and steps",
            typical,
            expected=self._expected,
            tolerance=NORM_TOLERANCE * (self._expected or 0.0),
            by_layer=ratios,
        )
        return [ratio, error]


def _recorded(folder: Path, size: Size, layers: Sequence[str]) -> tuple[np.ndarray, Tensor]:
    """(steps,), increasing, and the sizes of the layers in them, (steps, layers) float64."""
    trace = Trace.load(folder, measures=["grad_norm", "weight_norm"])
    weights = [f"{layer}.weight" for layer in layers]
    missing = [weight for weight in weights if weight not in trace.sites]
    if missing:
        raise ValueError(
            f"Expected {missing[0]} among the records of {folder}, but it is not there. "
            "Take the profile from a network of the same depth, or choose other layers."
        )
    table = GRADIENT_SIZES[size].compute(trace, weights)
    usable = np.isfinite(table).all(axis=1) & (table > 0).all(axis=1)
    if not usable.any():
        raise ValueError(f"Expected a gradient above 0 in every layer that {folder} recorded.")
    return trace.steps[usable], torch.from_numpy(table[usable])


def _per_norm(weights: Sequence[nn.Parameter], size: Size) -> Tensor:
    """(layers,): what a gradient norm is multiplied by to give the size."""
    counts = torch.tensor([w.numel() for w in weights], dtype=torch.float64) ** -0.5
    counts = counts.to(weights[0].device)
    if size == "gradient_rms":
        return counts
    norms = [torch.linalg.vector_norm(w.detach(), dtype=torch.float64) for w in weights]
    return counts * torch.stack(norms)
