"""Further numbers beside the evidence of a rival: they decide nothing, and a reader wants them."""

import math

from gradflow.analysis import mediators as read
from gradflow.analysis.case import Case
from gradflow.analysis.network import TrainedNetwork, drops
from gradflow.analysis.statistics import t_interval

MAX_DROPS = 3  # later, an ordinary schedule leaves a slope of noise over next to nothing


def slopes_at_drops(case: Case) -> tuple[str, ...]:
    """How fast the training loss still fell before the first drops, per unit of learning rate.

    The slope per step over the second half of the stage before the drop, over its learning rate,
    with its interval over seeds.
    """
    lines = []
    for group in (case.accused, case.reference):
        slopes = [_slopes(network) for network in group]
        n = min([MAX_DROPS, *map(len, slopes)]) if group else 0
        for drop in range(n):
            found = t_interval([one[drop] for one in slopes])
            spread = f" (95 % {found.low:+.3g} to {found.high:+.3g})" if found.n > 1 else ""
            lines.append(
                f"slope of {group[0].name}'s training loss before fall {drop + 1} of the learning "
                f"rate: {found.mean:+.3g} nats per unit of learning rate{spread}"
            )
    return tuple(lines)


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
        mode: read.mean(tuple(read.at_the_end(one, part, mode, transform) for one in group))
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
    at_test = read.mean(case.pairs(lambda a, b: read.test_loss(a) - read.test_loss(b)))
    at_training = read.mean(case.pairs(lambda a, b: read.train_loss(a) - read.train_loss(b)))
    if not math.isfinite(at_test + at_training):
        return ()
    return (
        f"the gap on test images, {at_test:+.3f} nats, is {at_training:+.3f} on training images "
        f"and {at_test - at_training:+.3f} from generalising",
    )


def noise_scales(case: Case) -> tuple[str, ...]:
    """The batch size at which noise and signal of the gradient are equal, per seed."""
    lines = []
    for group in (case.accused, case.reference):
        for step in ("90", "end"):
            found = [one.examined.get("noise", {}).get(step, {}).get("all") for one in group]
            scales = [one["noise_scale"] for one in found if one]
            if scales:
                numbers = ", ".join("∞" if one is None else f"{one:.0f}" for one in scales)
                at = "at the end" if step == "end" else f"at step {step}"
                lines.append(
                    f"gradient noise scale of {group[0].name} {at}, images, by seed: {numbers}"
                )
    return tuple(lines)


def _slopes(network: TrainedNetwork) -> list[float]:
    """nats per unit of learning rate before each drop."""
    if network.losses is None or network.learning_rates is None:
        return []
    begins = [0, *drops(network)]
    return [
        read.slope(network.losses[begin:end]) / float(network.learning_rates[end - 1])
        for begin, end in zip(begins, begins[1:], strict=False)
        if end - begin >= read.SHORTEST_STAGE
    ]
