"""Whether a network is likely to train: limits on what its start shows, set on networks that did.

experiments/zoo.py trained 190 networks with SGD and with AdamW. The limits were set on one half of
them and tested on the other; docs/controls.md says how well they do.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from gradflow.analysis.rates import Rate
from gradflow.analysis.thresholds import Threshold
from gradflow.record.measures import Measure
from gradflow.record.sites import kind_of

Outlook = Literal["ordinary", "unknown", "doubtful", "unlikely to train"]
OUTLOOKS: tuple[Outlook, ...] = get_args(Outlook)  # the better ones first
Cause = Literal["", "vanishing", "exploding"]

_ZOO = "experiments/zoo.py"

SHRUNK = Threshold(
    "shrunk", -3.1, "decades of δ, first over last layer",
    "of the networks that train with SGD and AdamW none shrinks more; SGD cannot train those that "
    "do", _ZOO,
)  # fmt: skip
GONE = Threshold(
    "gone", -8.0, "decades of δ, first over last layer",
    "AdamW trains many that shrink less, since it divides by the size of the gradient", _ZOO,
)  # fmt: skip
GROWN = Threshold(
    "grown", 4.0, "decades of δ, first over last layer",
    "no network that trains grows more; with BatchNorm and ReLU that is about 48 layers, where the "
    "rule of Yang et al. 2019 (arXiv:1902.08129) says 42", _ZOO,
)  # fmt: skip
ALIKE = Threshold(
    "alike", 1e-6, "share of the output that differs between inputs",
    "every input gets nearly the same answer; no network that trains has less than 1e-4", _ZOO,
)  # fmt: skip
LOUD = Threshold(
    "loud", 10.0, "rms of the output",
    "a cross-entropy starts far above chance, and SGD at an ordinary learning rate diverges", _ZOO,
)  # fmt: skip
DEAFENING = Threshold(
    "deafening", 1e7, "rms of the output",
    "AdamW moves the output back too slowly as well", _ZOO,
)  # fmt: skip

# Of those in the zoo that train with both optimizers, by the norm that they hold: how many, and the
# range of first over last δ in decades.
TRAINED: dict[str, tuple[int, float, float]] = {
    "BatchNorm": (40, -0.076, 3.664),
    "LayerNorm": (28, -0.916, 1.666),
    "no norm": (53, -5.025, 1.728),
}


def _differing_share(z: Tensor) -> Tensor:
    flat = z.reshape(len(z), -1) if z.dim() else z.reshape(1, 1)
    flat = torch.view_as_real(flat).flatten(1) if flat.is_complex() else flat
    flat = flat.double()
    squares = flat.square().sum()
    share = (flat - flat.mean(0)).square().sum() / squares
    return share.nan_to_num() if len(flat) > 1 else torch.full_like(share, torch.nan)


DIFFERING = Measure(
    "output_differing_share", "output", "Σ_b ‖z_b − mean_b z‖² / Σ_b ‖z_b‖², 0 where all are 0",
    "1", function=_differing_share,
)  # fmt: skip


@dataclass(frozen=True)
class Prospect:
    """What one draw of a network shows along one path, and what follows from it."""

    delta: Rate
    differing: float  # share of the last layer's output that differs between inputs
    output_rms: float  # of the last layer
    is_finite: bool

    @property
    def outlook(self) -> Outlook:
        if not self.cause:
            return "unknown" if math.isnan(self.delta.decades) else "ordinary"
        is_hopeless = (
            not self.is_finite
            or self.delta.n_without > 0
            or self.delta.decades < GONE.value
            or self.output_rms > DEAFENING.value
        )
        return "unlikely to train" if is_hopeless else "doubtful"

    @property
    def cause(self) -> Cause:
        change = self.delta.decades
        if not self.is_finite:
            return "exploding"
        if self.delta.n_without:
            return "vanishing"
        if change > GROWN.value or self.output_rms > LOUD.value:
            return "exploding"
        if change < SHRUNK.value or self.differing < ALIKE.value:
            return "vanishing"
        return ""

    @property
    def begins(self) -> int | None:
        """The layer from which on, towards the input, too little arrives; None if none is such."""
        values = self.delta.values
        known = [i for i, value in enumerate(values) if not math.isnan(value)]
        if self.delta.n_without:
            return known[self.delta.n_without - 1]
        begins = None
        for i in known:  # all layers before it must be such: the gradient goes round a dead branch
            if values[i] >= values[known[-1]] * 10**SHRUNK.value:
                break
            begins = i
        return begins


def typical(prospects: list[Prospect]) -> Prospect:
    """The draw in the middle, by outlook and then by how much δ changes."""
    ranked = sorted(prospects, key=lambda one: (OUTLOOKS.index(one.outlook), abs(_change(one))))
    return ranked[len(ranked) // 2]


def _change(prospect: Prospect) -> float:
    return 0.0 if math.isnan(prospect.delta.decades) else prospect.delta.decades


def norm_of(model: nn.Module) -> str:
    """Which row of `TRAINED` a network compares with."""
    modules = list(model.modules())
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules):
        return "BatchNorm"
    names = {type(module).__name__ for module in modules if kind_of(module) == "norm"}
    is_normed = bool(names - {"_WeightNorm", "_SpectralNorm"})  # norms of weights, not of outputs
    return "LayerNorm" if is_normed else "no norm"
