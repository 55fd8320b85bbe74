"""The interventions of one network in training, at work."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gradflow.interventions.gradients import Freeze, GradientScale, Transplant
from gradflow.interventions.initial import DeltaOrthogonal, LayerVariance
from gradflow.interventions.intervention import CheckInputs, GradientChange, Intervention
from gradflow.interventions.network import LeakySlope, NormBias, NormFree, SkipStrength
from gradflow.interventions.training import Accumulate, RandomLabels, Recalibrate, Reset
from gradflow.typed import shown


@dataclass
class Applied:
    """Applies interventions to the gradients of one network, and collects what they did.

    `attach` puts them before the optimizer's step. Make a Recorder after it: hooks run in the order
    in which they were added, and the Recorder then sees gradients as the optimizer receives them.
    """

    interventions: Sequence[Intervention]
    arch: str
    seed: int
    _changes: list[tuple[Intervention, GradientChange]] = field(default_factory=list)
    _hook: RemovableHandle | None = None

    def attach(self, model: nn.Module, optimizer: Optimizer, step: Callable[[], int]) -> None:
        """Change gradients before each step of `optimizer`; `step` gives the number of the step."""
        for intervention in self.interventions:
            change = intervention.gradient_change(model, self.arch, self.seed)
            if change is not None:
                self._changes.append((intervention, change))
        if not self._changes:
            return

        def before_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
            # A fused optimizer divides by the loss scale inside its step.
            scale = getattr(optimizer, "grad_scale", None)
            for _, change in self._changes:
                change.before_step(step(), scale if isinstance(scale, Tensor) else None)

        self._hook = optimizer.register_step_pre_hook(before_step)

    def state_dict(self) -> list[dict[str, Tensor]]:
        """What the checks of the gradients have seen, for a checkpoint."""
        return [change.state_dict() for _, change in self._changes]

    def load_state_dict(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Go on from there, after `attach`."""
        for (_, change), state in zip(self._changes, states, strict=True):
            change.load_state_dict(state)

    def detach(self) -> None:
        """Leave the optimizer as it was; more calls do nothing."""
        if self._hook is not None:
            self._hook.remove()

    def report(self, evidence: CheckInputs) -> list[dict[str, Any]]:
        """Each intervention with its manipulation checks, as plain JSON types."""
        report = []
        for intervention in self.interventions:
            checks = [
                check
                for theirs, change in self._changes
                if theirs is intervention
                for check in change.checks()
            ] + intervention.checks(evidence)
            report.append(
                {
                    "intervention": str(intervention),
                    "name": intervention.name,
                    "says": intervention.describe(),
                    "passed": all(check.passed is not False for check in checks),
                    "checks": [check.to_json() for check in checks],
                }
            )
        return report


# -- as text ---------------------------------------------------------------------------------------


INTERVENTIONS: dict[str, type[Intervention]] = {
    kind.name: kind
    for kind in (
        GradientScale,
        Transplant,
        Freeze,
        Reset,
        SkipStrength,
        NormBias,
        LeakySlope,
        NormFree,
        DeltaOrthogonal,
        LayerVariance,
        RandomLabels,
        Accumulate,
        Recalibrate,
    )
}


LARGEST = 2**32  # of a number: a seed of 32 bits, and far from what float32 can hold


def parse(text: str) -> tuple[Intervention, ...]:
    """The interventions that `text` names, in its order; none for an empty text.

    Several are separated by semicolons. Raises ValueError, which names what is known.

    >>> parse("gradient_scale(layers=1-17, factor=0.001); freeze(layers=1)")[0].factor
    0.001
    """
    return tuple(_parse_one(part.strip()) for part in text.split(";") if part.strip())


def _parse_one(text: str) -> Intervention:
    match = re.fullmatch(r"(\w+)\s*(?:\((.*)\))?", text, re.DOTALL)
    if match is None or match[1] not in INTERVENTIONS:
        raise ValueError(
            f"Expected an intervention such as 'gradient_scale(layers=1-17, factor=0.001)', one of "
            f"{', '.join(INTERVENTIONS)}, but got {text!r}."
        )
    kind = INTERVENTIONS[match[1]]
    try:
        return kind(**_arguments(kind, match[2] or ""))
    except ValueError as error:
        raise ValueError(f"{kind.name}: {error}") from None


def _arguments(kind: type[Intervention], text: str) -> dict[str, Any]:
    """A comma ends a value only where the next name follows, since `layers=1,3` has one inside."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for part in re.split(r",\s*(?=\w+\s*=)", text.strip()) if text.strip() else []:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in fields or name in given:
            raise ValueError(
                f"Expected arguments name=value, each once, of {', '.join(fields)}, "
                f"but got {part.strip()!r}."
            )
        given[name] = _value(name, fields[name].type, value)
    missing = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and name not in given
    ]
    if missing:
        raise ValueError(f"Expected `{missing[0]}`, but it is missing.")
    return given


def _value(name: str, kind: Any, text: str) -> Any:
    """Numbers as numbers; all else is text, which the intervention checks."""
    if kind not in (int, float):
        return text
    try:
        value = kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"Expected `{name}` to be {what}, but got {shown(text)}.") from None
    if not abs(value) <= LARGEST:  # also for what is no number
        raise ValueError(
            f"Expected `{name}` finite and within ±{LARGEST:g}, but got {shown(text)}."
        )
    return value
