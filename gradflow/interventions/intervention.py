"""Intervention: one thing that is changed on purpose, and the proof that it changed."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor, nn

from gradflow.analysis.findings import Changes
from gradflow.typed import to_json


@dataclass(frozen=True)
class Check:
    """A manipulation check: what was measured of a change, beside what it should have been."""

    what: str
    measured: float
    expected: float | None = None  # None: nothing is predicted here, the number is for the reader
    tolerance: float = 0.0  # largest |measured − expected| that passes
    by_layer: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        """Whether the change is there; None where nothing was predicted."""
        if self.expected is None:
            return None
        return bool(abs(self.measured - self.expected) <= self.tolerance)

    def to_json(self) -> dict[str, Any]:
        """Plain types; None stands for what is not finite."""
        fields: dict[str, Any] = to_json(self)
        by_layer = fields.pop("by_layer")
        return fields | {"passed": self.passed, "by_layer": by_layer}


@dataclass(frozen=True, eq=False)
class CheckInputs:
    """What the checks of one trained network look at."""

    initial: nn.Module  # as training began, on the CPU
    trained: nn.Module  # as training ended, on the CPU
    evaluated: nn.Module  # the same as it was evaluated
    images: Tensor  # of the first training batch
    labels: Tensor
    true_labels: Tensor  # of all training images
    given_labels: Tensor  # the ones it was trained on
    batches_per_epoch: int
    steps_per_epoch: float


def check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"Expected `{name}` from 0 to 1, but got {value}.")


class GradientChange:
    """Changes the gradients of one network in training, and may watch that it did."""

    def before_step(self, step: int, loss_scale: Tensor | None) -> None:
        """The gradients are those of the whole batch; times `loss_scale`, if there is one."""
        raise NotImplementedError

    def checks(self) -> list[Check]:
        """What it did to the gradients, of all steps so far."""
        return []

    def state_dict(self) -> dict[str, Tensor]:
        """What it has seen, for a checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""


class Intervention:
    """One thing changed on purpose; subclasses are frozen dataclasses that check themselves.

    Each acts at one of the points below and leaves the others alone. `sham` is the same
    intervention at the dose that changes nothing: a training with it is bit-identical to one
    without.
    """

    name: ClassVar[str]  # in the text form
    # What it touches: only what acts on gradients alone can show that gradients were the cause.
    changes: ClassVar[Changes] = "signal and gradients"
    no_dose: ClassVar[Mapping[str, Any]]  # the fields at the dose that changes nothing

    def describe(self) -> str:
        """In one sentence, what it changes."""
        raise NotImplementedError

    def sham(self) -> Self:
        """The twin that goes through the same motions and changes nothing."""
        return dataclasses.replace(self, **self.no_dose)  # type: ignore[type-var]

    def checks(self, evidence: CheckInputs) -> list[Check]:
        """Whether it changed what it says; a GradientChange has checks of its own."""
        return []

    # -- the points at which it can act ------------------------------------------------------

    def change_network(self, model: nn.Module) -> None:
        """Layers and first weights of a network that was just made, in place."""

    def change_start(self, model: nn.Module, images: Tensor) -> None:
        """First weights that depend on images: the first training batch, on the CPU."""

    def gradient_change(self, model: nn.Module, arch: str, seed: int) -> GradientChange | None:
        """What to do with the gradients before each optimizer step."""
        return None

    def change_labels(self, labels: Tensor, train: np.ndarray) -> Tensor:
        """The labels of all images, those at the indices `train` being the training set."""
        return labels

    @property
    def batches_per_step(self) -> int:
        """Batches whose mean gradient makes one optimizer step; 0: all of an epoch."""
        return 1

    def change_evaluated(
        self, model: nn.Module, initial: Mapping[str, Tensor], images: Iterable[Tensor]
    ) -> nn.Module:
        """The network to evaluate; `images` are training batches. Never changes `model`."""
        return model

    def __str__(self) -> str:
        """The text form, which `parse` reads."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # subclasses are dataclasses
        values = ", ".join(f"{field.name}={getattr(self, field.name)}" for field in fields)
        return f"{self.name}({values})"
