"""Interventions on the network itself: skip connections, activations, norms."""

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from gradflow.examine.path import belonging
from gradflow.interventions.intervention import Check, CheckInputs, Intervention, check_share
from gradflow.interventions.layers import ALL, NONE, OfLayers, chosen_layers
from gradflow.nets import BasicBlock

NormFreeInit = Literal["fan_in", "keep"]


@dataclass(frozen=True)
class SkipStrength(Intervention):
    """Multiply every skip connection by `alpha`: relu(branch(x) + α · shortcut(x)).

    The network must be residual. α = 1 is the residual network, α = 0 the plain one, both to the
    last bit. Where a shortcut changes shape by a projection (`--shortcut B`), its norm learns a
    scale, which could undo α; a check says how strong it is in the end.
    """

    name: ClassVar[str] = "skip"
    no_dose = {"alpha": 1.0}
    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_share("alpha", self.alpha)

    def describe(self) -> str:
        return f"Every skip connection is multiplied by {self.alpha:g}."

    def change_network(self, model: nn.Module) -> None:
        blocks = _blocks(model)
        if not blocks or any(block.skip == 0 for block in blocks):
            raise ValueError(
                "Expected a residual network for skip(alpha=…), but got one without skip "
                "connections. Use `--arch resnet_18` or `resnet_34`; alpha=0 makes it plain."
            )
        for block in blocks:
            block.skip = self.alpha
            if self.alpha == 0:
                block.downsample = None

    def checks(self, evidence: CheckInputs) -> list[Check]:
        blocks = _blocks(evidence.trained)
        furthest = max((block.skip for block in blocks), key=lambda skip: abs(skip - self.alpha))
        shortcuts = [block.downsample for block in blocks if block.downsample is not None]
        found = [
            Check("strength of the skip connections", furthest, expected=self.alpha),
            Check("shortcuts that change shape", len(shortcuts), expected=3 if self.alpha else 0),
        ]
        scales = [
            float(norm.weight.detach().abs().mean())
            for shortcut in shortcuts
            for norm in shortcut.modules()
            if isinstance(norm, nn.BatchNorm2d)
        ]
        if scales and self.alpha != 1:
            strongest = self.alpha * max(scales)
            found.append(
                Check("largest strength of a projection in the end: α times its norm's mean |γ|, "
                      "nearer to α than to 1", strongest, expected=self.alpha,
                      tolerance=(1 - self.alpha) / 2)
            )  # fmt: skip
        return [*found, *growth_checks(evidence)]


def _blocks(model: nn.Module) -> list[BasicBlock]:
    return [module for module in model.modules() if isinstance(module, BasicBlock)]


@dataclass(frozen=True)
class NormBias(OfLayers):
    """Start the bias β of every BatchNorm on the main path at `beta`, not at 0.

    A dose on the explosion of gradients in BatchNorm networks: the squared gradient grows per layer
    by λ = Φ(β) / Var[relu(z + β)] with z standard normal: 1.467, 1.249, 1.120 and 1.018 at
    β = 0, 0.5, 1 and 2. Norms of projections keep theirs. The bias then learns as ever.
    """

    name: ClassVar[str] = "norm_bias"
    no_dose = {"beta": 0.0}
    beta: float = 0.0
    layers: str = ALL

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isfinite(self.beta):
            raise ValueError(f"Expected `beta` to be finite, but got {self.beta}.")

    def describe(self) -> str:
        return f"The biases of the norms of layers {self.layers} start at {self.beta:g}."

    def change_network(self, model: nn.Module) -> None:
        for norm in _norms(model, self.layers):
            nn.init.constant_(norm.bias, self.beta)

    def checks(self, evidence: CheckInputs) -> list[Check]:
        biases = [norm.bias.detach() for norm in _norms(evidence.initial, self.layers)]
        first = [float(bias.flatten()[(bias - self.beta).abs().argmax()]) for bias in biases]
        furthest = max(first, key=lambda bias: abs(bias - self.beta), default=self.beta)
        bias = Check("first bias of the norms, the furthest from the wished one", furthest,
                     expected=self.beta, tolerance=1e-6 * abs(self.beta))  # fmt: skip
        return [bias, *growth_checks(evidence, beta=self.beta)]


def _norms(model: nn.Module, layers: str) -> list[nn.BatchNorm2d]:
    """Those of the named layers, without the norms of projections."""
    norms = [
        module
        for name, module in _modules(model, layers)
        if isinstance(module, nn.BatchNorm2d) and ".downsample." not in name
    ]
    if not norms and layers != NONE:
        raise ValueError(
            f"Expected BatchNorm in layers {layers}, but there is none. Leave out norm_bias, or "
            "put it before norm_free."
        )
    return norms


@dataclass(frozen=True)
class LeakySlope(Intervention):
    """Replace every ReLU by a leaky one of this `slope` for negative values.

    Another dose on the explosion: λ = 1 / (1 − (1 − a)² / (π (1 + a²))), which is 1.467, 1.244,
    1.068 and 1 at a = 0, 0.2, 0.5 and 1. A slope of 0.01 hardly moves λ (1.453) but leaves no unit
    dead.
    """

    name: ClassVar[str] = "leaky"
    no_dose = {"slope": 0.0}
    slope: float = 0.0

    def __post_init__(self) -> None:
        check_share("slope", self.slope)

    def describe(self) -> str:
        return f"Every ReLU has the slope {self.slope:g} for negative inputs."

    def change_network(self, model: nn.Module) -> None:
        if self.slope == 0:
            return  # a LeakyReLU of slope 0 would give −0 where ReLU gives 0
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.ReLU):
                    setattr(parent, name, nn.LeakyReLU(self.slope))

    def checks(self, evidence: CheckInputs) -> list[Check]:
        slopes = [
            module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0
            for module in evidence.trained.modules()
            if isinstance(module, (nn.ReLU, nn.LeakyReLU))
        ]
        slope = Check("mean slope of the activations", sum(slopes) / len(slopes), self.slope, 1e-9)
        return [slope, *growth_checks(evidence, slope=self.slope)]


@dataclass(frozen=True)
class NormFree(OfLayers):
    """Take BatchNorm away: its layer gets a bias, which starts at 0, and no norm.

    `init` says with what weights such a network starts. `fan_in` rescales each layer's drawn
    weights to the variance 2 / fan_in that keeps signal and gradient from layer to layer (He et
    al. 2015, https://arxiv.org/abs/1502.01852), but for zero padding; lsuv makes up for that.
    `keep` leaves what `--init` drew: with `torch-default` that is a network whose gradient
    vanishes, about 0.39 decades per layer.

    Meant for plain networks: without norms, the signal of a residual network doubles per block.
    """

    name: ClassVar[str] = "norm_free"
    init: NormFreeInit = "fan_in"
    layers: str = ALL

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init not in get_args(NormFreeInit):
            raise ValueError(f"Expected `init` in {get_args(NormFreeInit)}, but got {self.init!r}.")

    def describe(self) -> str:
        weights = "He's by fan-in" if self.init == "fan_in" else "as drawn"
        return f"Layers {self.layers} have a bias in place of BatchNorm; initial weights {weights}."

    def change_network(self, model: nn.Module) -> None:
        conv: nn.Conv2d | None = None
        for name, module in _modules(model, self.layers):
            if isinstance(module, nn.Conv2d):
                conv = module
                if self.init == "fan_in":
                    rescale(conv.weight, (2 / conv.weight[0].numel()) ** 0.5)
            elif isinstance(module, nn.BatchNorm2d) and conv is not None:
                conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, nn.Identity())

    def checks(self, evidence: CheckInputs) -> list[Check]:
        modules = _modules(evidence.trained, self.layers)
        n_norms = sum(isinstance(module, nn.BatchNorm2d) for _, module in modules)
        return [Check("norms left", n_norms, expected=0.0), *growth_checks(evidence)]


def _modules(model: nn.Module, layers: str) -> list[tuple[str, nn.Module]]:
    """What belongs to the chosen layers and has weights or statistics of its own, by name."""
    names = belonging(model, chosen_layers(model, layers))
    owners = {name.rpartition(".")[0] for name in names}
    return [(name, module) for name, module in model.named_modules() if name in owners]


@torch.no_grad()
def rescale(weight: Tensor, std: float) -> None:
    """Multiply a weight so that the root of its mean square is `std`."""
    weight.mul_(std / weight.double().square().mean().sqrt().to(weight.dtype))


def convolutions(model: nn.Module, layers: str) -> list[tuple[str, nn.Conv2d]]:
    """The convolutions among the chosen layers of the main path, by name."""
    return [
        (name, module)
        for name in chosen_layers(model, layers)
        if isinstance(module := model.get_submodule(name), nn.Conv2d)
    ]


# -- the growth of the gradient per layer ----------------------------------------------------------


# λ of a convolutional network lies below the closed form of wide layers without space: zero padding
# and neighbouring pixels correlate what the theory takes as independent. Plain-34 at 64 px has 1.39
# where wide layers have 1.47 to 1.50; the band that was registered for it is 1.35 to 1.60.
GROWTH_TOLERANCE = 0.15


def growth_checks(evidence: CheckInputs, *, beta: float = 0.0, slope: float = 0.0) -> list[Check]:
    """λ of the first training batch, before training, against what theory says of this dose.

    It is predicted for plain networks with BatchNorm alone, and for one dose: where the network has
    a bias beside the slope that was asked about, or the other way round, the number is for the
    reader.
    """
    from gradflow.controls import closed_forms  # loads scipy, and so does the check
    from gradflow.examine.initial import TRANSPORT, check

    of_slope, of_bias = closed_forms.expected_growth_bn_leaky, closed_forms.expected_growth_bn_bias
    found = check(evidence.initial, evidence.images, draws=1, labels=evidence.labels)
    is_known = _is_plain_with_norms(evidence.initial) and _has_doses(evidence.initial, beta, slope)
    return [
        Check(
            "λ at the start: growth per layer of the squared gradient of the outputs",
            found.profiles[TRANSPORT].rate.growth,
            expected=(of_slope(slope) if slope else of_bias(beta)) if is_known else None,
            tolerance=GROWTH_TOLERANCE,
        )
    ]


def _has_doses(model: nn.Module, beta: float, slope: float) -> bool:
    """Whether every bias of a norm and every slope is this one."""
    return all(
        bool((module.bias == beta).all())
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
    ) and all(
        getattr(module, "negative_slope", 0.0) == slope
        for module in model.modules()
        if isinstance(module, nn.ReLU | nn.LeakyReLU)
    )


def _is_plain_with_norms(model: nn.Module) -> bool:
    """Whether every block has its norms and no skip connection: what the closed forms are about."""
    skips = [getattr(module, "skip", 0) for module in model.modules()]
    n_convs = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    n_norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return not any(skips) and n_convs == n_norms
