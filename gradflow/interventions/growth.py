"""The growth of the gradient per layer at the start, which some interventions are a dose of."""

from torch import nn

from gradflow.interventions.intervention import Check, CheckInputs

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
    from gradflow.controls.closed_forms import (  # loads scipy
        expected_growth_bn_bias,
        expected_growth_bn_leaky,
    )

    growth = expected_growth_bn_leaky(slope) if slope else expected_growth_bn_bias(beta)
    is_known = _is_plain_with_norms(evidence.initial) and _has_doses(evidence.initial, beta, slope)
    return [
        Check(
            "λ at the start: growth per layer of the squared gradient of the outputs",
            growth_at_start(evidence),
            expected=growth if is_known else None,
            tolerance=GROWTH_TOLERANCE,
        )
    ]


def growth_at_start(evidence: CheckInputs) -> float:
    """λ of ‖∂L/∂z‖² per layer towards the input, in train mode; NaN without one."""
    from gradflow.examine.initial import TRANSPORT, check  # loads scipy

    found = check(evidence.initial, evidence.images, draws=1, labels=evidence.labels)
    return found.profiles[TRANSPORT].rate.growth


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
