"""Interventions on the first weights: delta-orthogonal, and unit variance layer by layer.

Under BatchNorm the scale of a weight means nothing: neither may change λ there, and both are
negative controls, whose check is that λ is what it is without them. Without norms they decide
whether a deep network trains at all.
"""

from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradflow.interventions.intervention import Check, CheckInputs
from gradflow.interventions.layers import ALL, OfLayers
from gradflow.interventions.network import convolutions, growth_checks

ORTHOGONAL_TOLERANCE = 1e-5  # products of up to 512 float32 weights, summed in float64


@dataclass(frozen=True)
class DeltaOrthogonal(OfLayers):
    """Start convolutions as an orthogonal matrix in the centre tap and zeros around it.

    With W (C_out, C_in) the centre tap, W Wᵀ = gain² I, or WᵀW = gain² I where C_out > C_in. W is
    the orthogonal matrix next to the drawn centre tap (the polar factor U Vᵀ of its singular value
    decomposition), which is uniform over all of them and the same for both networks of a seed.
    Before a ReLU without norms a `gain` of √2 keeps the signal. Xiao et al. 2018,
    https://arxiv.org/abs/1806.05393
    """

    name: ClassVar[str] = "delta_orthogonal"
    gain: float = 1.0
    layers: str = ALL

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isfinite(self.gain) and self.gain > 0):
            raise ValueError(f"Expected `gain` to be a finite number above 0, but got {self.gain}.")

    def describe(self) -> str:
        return f"The convolutions of layers {self.layers} start delta-orthogonal."

    @torch.no_grad()
    def change_network(self, model: nn.Module) -> None:
        for _, conv in convolutions(model, self.layers):
            tap = _centre_tap(conv.weight)
            u, _, vh = torch.linalg.svd(tap.double(), full_matrices=False)
            conv.weight.zero_()
            tap.copy_(self.gain * (u @ vh))

    def checks(self, evidence: CheckInputs) -> list[Check]:
        """Orthogonal up to a factor, since lsuv may come after it; the gain stands beside it."""
        convs = convolutions(evidence.initial, self.layers)
        found = {name: _departure(conv) for name, conv in convs}
        errors = {name: error for name, (error, _) in found.items()}
        gains = {name: gain for name, (_, gain) in found.items()}
        worst = Check(
            "largest |W Wᵀ / gain² − I| of a centre tap, or weight outside of it over the gain",
            max(errors.values(), default=0.0),
            expected=0.0,
            tolerance=ORTHOGONAL_TOLERANCE,
            by_layer=errors,
        )
        mean = sum(gains.values()) / len(gains) if gains else self.gain
        return [worst, Check("mean gain", mean, by_layer=gains), *growth_checks(evidence)]


def _departure(conv: nn.Conv2d) -> tuple[float, float]:
    """How far the weight is from delta-orthogonal, relative to its gain; and the gain."""
    tap = _centre_tap(conv.weight).detach().double()
    gram = tap @ tap.T if tap.shape[0] <= tap.shape[1] else tap.T @ tap
    square = float(gram.diagonal().mean())
    off = (gram / square - torch.eye(len(gram), dtype=gram.dtype)).abs().max()
    around = conv.weight.detach().clone()
    _centre_tap(around).zero_()
    return max(float(off), float(around.abs().max()) / square**0.5), square**0.5


def _centre_tap(weight: Tensor) -> Tensor:
    """(C_out, C_in): a view of it."""
    return weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2]


@dataclass(frozen=True)
class LayerVariance(OfLayers):
    """LSUV: scale the first weights of each layer so that its output on the first batch has var 1.

    Layer after layer, input first, each on what the scaled layers before it give it. A convolution
    without bias scales with its weights, so one pass is exact. Only the scale is set; put
    delta_orthogonal before it for the orthogonal start of Mishkin & Matas 2016,
    https://arxiv.org/abs/1511.06422. The classifier keeps its weights.
    """

    name: ClassVar[str] = "lsuv"
    layers: str = ALL

    def describe(self) -> str:
        return f"The outputs of layers {self.layers} start with variance 1 on the first batch."

    def change_start(self, model: nn.Module, images: Tensor) -> None:
        convs = convolutions(model, self.layers)
        _forward(model, images, [(conv, _scale_output) for _, conv in convs])

    def checks(self, evidence: CheckInputs) -> list[Check]:
        variances: dict[str, float] = {}

        def keep(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
            variances[name] = float(output.double().var(correction=0))

        convs = convolutions(evidence.initial, self.layers)
        _forward(
            evidence.initial, evidence.images, [(conv, partial(keep, name)) for name, conv in convs]
        )
        furthest = max(variances.values(), key=lambda v: abs(v - 1), default=1.0)
        found = Check(
            "variance of the output on the first batch, the furthest from 1",
            furthest,
            expected=1.0,
            tolerance=1e-3,
            by_layer=variances,
        )
        return [found, *growth_checks(evidence)]


def _scale_output(module: nn.Conv2d, args: Any, output: Tensor) -> Tensor:
    std = output.double().var(correction=0).sqrt()
    if not (torch.isfinite(std) and std > 0):
        raise ValueError(
            "Expected finite outputs with a spread on the first batch for lsuv, but a layer's "
            f"standard deviation was {float(std):g}. Start from other weights."
        )
    factor = (1 / std).to(output.dtype)
    module.weight.mul_(factor)
    return output * factor


@torch.no_grad()
def _forward(model: nn.Module, images: Tensor, hooks: list[tuple[nn.Conv2d, Any]]) -> None:
    """One pass in train mode with these forward hooks; BatchNorm's buffers stay as they were."""
    if not hooks:
        return
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    handles = [conv.register_forward_hook(hook) for conv, hook in hooks]
    try:
        model.train()(images)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
