"""Interventions on the data, on the batch of a step, and on what is evaluated."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from gradflow.examine.batchnorm import divergence, recalibrated
from gradflow.examine.path import belonging, reset_layers
from gradflow.interventions.gradients import changed_fraction
from gradflow.interventions.intervention import Check, CheckInputs, Intervention, check_share
from gradflow.interventions.layers import ALL, OfLayers, chosen_layers

# A channel that is the same for every image, such as a dead one, has the same statistics both ways.
REPLACED_TOLERANCE = 0.05


@dataclass(frozen=True)
class RandomLabels(Intervention):
    """Shuffle the labels of a `share` of the training images among themselves.

    The classes keep their sizes. A network that cannot reach a low training loss on such labels
    cannot fit, whatever it generalises (Zhang et al. 2017, https://arxiv.org/abs/1611.03530).
    Validation and test images keep their labels.
    """

    name: ClassVar[str] = "random_labels"
    no_dose = {"share": 0.0}
    share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("share", self.share)
        if self.seed < 0:
            raise ValueError(f"Expected `seed` of 0 or more, but got {self.seed}.")

    def describe(self) -> str:
        return f"The labels of {self.share:.0%} of the training images are shuffled."

    def change_labels(self, labels: Tensor, train: np.ndarray) -> Tensor:
        random = np.random.default_rng(self.seed)
        chosen = random.permutation(train)[: round(self.share * len(train))]
        changed = labels.clone()
        changed[torch.from_numpy(chosen)] = labels[torch.from_numpy(random.permutation(chosen))]
        return changed

    def checks(self, evidence: CheckInputs) -> list[Check]:
        """Of shuffled labels, Σ p² are by chance what they were, p being the class shares."""
        n = len(evidence.true_labels)
        shares = torch.bincount(evidence.true_labels).double() / n
        expected = self.share * (1 - float(shares.square().sum()))
        measured = float((evidence.true_labels != evidence.given_labels).double().mean())
        spread = (expected * (1 - expected) / n) ** 0.5
        return [Check("share of the training labels that changed", measured, expected, 4 * spread)]


@dataclass(frozen=True)
class Accumulate(Intervention):
    """Make one optimizer step from the mean gradient of so many `batches`; 0: of a whole epoch.

    With 0 it is the full-batch gradient with ghost batches: each batch is still normalised by its
    own mean and variance, so that the noise of the gradient goes and BatchNorm stays. An epoch then
    has fewer steps: raise `--epochs` and `--step-size` by the same factor for as many steps.
    """

    name: ClassVar[str] = "accumulate"
    no_dose = {"batches": 1}
    batches: int = 0

    def __post_init__(self) -> None:
        if self.batches < 0:
            raise ValueError(f"Expected `batches` of 0 or more, but got {self.batches}.")

    def describe(self) -> str:
        of = f"{self.batches} batches" if self.batches else "all batches of an epoch"
        return f"Each optimizer step takes the mean gradient of {of}."

    @property
    def batches_per_step(self) -> int:
        return self.batches

    def checks(self, evidence: CheckInputs) -> list[Check]:
        per_step = self.batches or evidence.batches_per_epoch
        expected = -(-evidence.batches_per_epoch // per_step)
        return [Check("optimizer steps per epoch", evidence.steps_per_epoch, float(expected))]


@dataclass(frozen=True)
class Reset(OfLayers):
    """Evaluate the trained network with `layers` as they were before training.

    BatchNorm is recalibrated on training images, since running statistics of other weights would
    pass for something forgotten. Where the loss hardly rises, the layers need not have learned:
    Zhang, Bengio & Singer, JMLR 2022, https://arxiv.org/abs/1902.01996. Training is not touched.
    """

    name: ClassVar[str] = "reset"
    layers: str = ALL

    def describe(self) -> str:
        return f"Layers {self.layers} are evaluated with their initial weights."

    def change_evaluated(
        self, model: nn.Module, initial: Mapping[str, Tensor], images: Iterable[Tensor]
    ) -> nn.Module:
        layers = chosen_layers(model, self.layers)
        if not layers:
            return model
        return recalibrated(reset_layers(model, initial, layers), images)

    def checks(self, evidence: CheckInputs) -> list[Check]:
        names = belonging(evidence.trained, chosen_layers(evidence.trained, self.layers))
        learned = changed_fraction(evidence.initial, evidence.trained, names)
        left = changed_fraction(evidence.initial, evidence.evaluated, names)
        return [
            Check("share of the reset weights that training had changed", learned),
            Check("share of the reset weights that differ from the first ones", left, expected=0.0),
        ]


@dataclass(frozen=True)
class Recalibrate(Intervention):
    """Evaluate with the population statistics of the training images in every BatchNorm.

    In place of the moving average that training left (PreciseBN: Wu & Johnson 2021,
    https://arxiv.org/abs/2105.07576). `share` is how far the statistics go to the population's: 0
    keeps the moving average. Training, and the choice of the best epoch, are not touched.
    """

    name: ClassVar[str] = "recalibrate"
    no_dose = {"share": 0.0}
    share: float = 1.0

    def __post_init__(self) -> None:
        check_share("share", self.share)

    def describe(self) -> str:
        return "The evaluation normalises by the statistics of all training images."

    def change_evaluated(
        self, model: nn.Module, initial: Mapping[str, Tensor], images: Iterable[Tensor]
    ) -> nn.Module:
        if self.share == 0:
            return model
        return _between(model, recalibrated(model, images), self.share)

    def checks(self, evidence: CheckInputs) -> list[Check]:
        moved = divergence(evidence.trained, evidence.evaluated)
        mean = sum(moved.values()) / len(moved) if moved else 0.0
        what = "divergence of the running statistics from those evaluated with, mean over norms"
        replaced = Check(
            "share of the running statistics that were replaced",
            _replaced(evidence.trained, evidence.evaluated),
            expected=1.0 if self.share and moved else 0.0,
            tolerance=REPLACED_TOLERANCE,
        )
        return [replaced, Check(f"{what} (nats)", mean, by_layer=moved)]


def _replaced(running: nn.Module, evaluated: nn.Module) -> float:
    """The share of the means and variances of all norms that differ; 0 without norms."""
    ours = dict(running.named_buffers())
    pairs = [(ours[name], b) for name, b in evaluated.named_buffers() if b.is_floating_point()]
    n_all = sum(one.numel() for one, _ in pairs)
    return sum(int((one != other).sum()) for one, other in pairs) / n_all if n_all else 0.0


@torch.no_grad()
def _between(running: nn.Module, population: nn.Module, share: float) -> nn.Module:
    """`population`, whose statistics go back towards the running ones."""
    ours = dict(running.named_buffers())
    for name, buffer in population.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.lerp(ours[name], buffer, share))
    return population
