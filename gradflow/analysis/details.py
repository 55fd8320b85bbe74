"""Further numbers beside the evidence of a rival: they decide nothing, and a reader wants them."""

import math

from gradflow.analysis import mediators as read
from gradflow.analysis.case import Case
from gradflow.analysis.network import TrainedNetwork
from gradflow.analysis.statistics import mean


def batchnorm_modes(case: Case) -> tuple[str, ...]:
    """The final loss by BatchNorm mode, part and transform: means over seeds."""
    return tuple(
        line
        for group in (case.accused, case.reference)
        for part in ("train", "test")
        for transform in ("plain", "augmented")
        for line in _modes(group, part, transform)
    )


def _modes(group: tuple[TrainedNetwork, ...], part: str, transform: str) -> list[str]:
    losses = {
        mode: mean(tuple(read.at_the_end(one, part, mode, transform) for one in group))
        for mode in ("running", "recalibrated", "batch")
    }
    if not all(math.isfinite(loss) for loss in losses.values()):
        return []
    numbers = ", ".join(f"{mode} {loss:.3f}" for mode, loss in losses.items())
    return [
        f"loss of {group[0].name} on {transform} {part} images by BatchNorm statistics: {numbers}"
    ]


def decomposition(case: Case) -> tuple[str, ...]:
    """Gap on test images = gap on training images + what comes with generalising."""
    at_test = mean(case.pairs(lambda a, b: read.test_loss(a) - read.test_loss(b)))
    at_training = mean(case.pairs(lambda a, b: read.train_loss(a) - read.train_loss(b)))
    if not math.isfinite(at_test + at_training):
        return ()
    return (
        f"the gap on test images, {at_test:+.3f} nats, is {at_training:+.3f} on training images "
        f"and {at_test - at_training:+.3f} from generalising",
    )
