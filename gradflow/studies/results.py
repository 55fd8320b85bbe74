"""Results: what a study found, and its results.json."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradflow.analysis import thresholds as at
from gradflow.analysis.profile import GRADIENT_SIZES
from gradflow.analysis.shares import ALPHA, Interaction, Judged, Share
from gradflow.analysis.statistics import Interval, t_interval
from gradflow.analysis.verdict import Restored
from gradflow.studies.arms import Arm, Place
from gradflow.studies.comparable import changes, is_size_control
from gradflow.studies.outcomes import MEASURES
from gradflow.studies.study import Study
from gradflow.typed import to_json

SCHEMA_VERSION = 1
PRIMARY = MEASURES[0]  # an explanation of bad training is judged by the training


@dataclass(frozen=True)
class Equivalence:
    """How far an arm that by algebra changes nothing moved the training loss of the accused.

    Two one-sided tests (TOST): p that |mean change| < margin. It controls the machinery.
    """

    change: Interval  # of the training loss, in nats
    p: float

    @property
    def holds(self) -> bool:
        return self.p <= ALPHA

    def to_json(self) -> dict[str, Any]:
        change, margin = _interval(self.change), at.LOSS_MARGIN.value
        return {"change": change, "margin": margin, "p": self.p, "holds": self.holds}


@dataclass(frozen=True)
class ArmResult:
    """One arm over its seeds; `shares` and `judged` by the name of the outcome measure."""

    arm: Arm
    seeds: tuple[int, ...]
    shares: Mapping[str, Share]
    judged: Mapping[str, Judged]
    levels: Mapping[Place, Mapping[str, Interval]]  # of each network in the arm
    checks: tuple[Mapping[str, Any], ...]  # of each network, the mean of each over seeds
    decades: Mapping[Place, Mapping[str, float]]
    seconds: float  # of one training, the mean
    equivalence: Equivalence | None = None  # of arms that by algebra change nothing

    @property
    def moved(self) -> bool:
        """Whether the arm changed what it says: no check failed, and some passed."""
        verdicts = [check["passed"] for check in self.checks if check["passed"] is not None]
        return bool(verdicts) and all(verdicts)

    @property
    def primary(self) -> Judged | None:
        """What it is by the training loss; None for an arm that is no candidate for a cause."""
        return self.judged.get(PRIMARY.name)


@dataclass(frozen=True)
class PositiveControl:
    """An arm that must change the training, else others prove nothing."""

    arm: Arm
    seeds: tuple[int, ...]
    change: Interval  # of the training loss, in nats
    reacts: bool
    checks: tuple[Mapping[str, Any], ...] = ()
    diverged: tuple[int, ...] = ()  # seeds whose loss became NaN: a reaction that has no number

    @property
    def silent(self) -> str:
        """Its name, and what is known of why it does not react."""
        if any(check["passed"] is False for check in self.checks):
            return f"{self.arm.name}: its manipulation check failed"
        if self.diverged:
            return f"{self.arm.name}: diverged in {len(self.diverged)} seeds"
        return self.arm.name if self.seeds else f"{self.arm.name}: no seed is complete"


@dataclass(frozen=True)
class Results:
    """What a study found; `to_json` is its results.json."""

    study: Study
    baseline: ArmResult
    gap: Mapping[str, Interval]
    gap_is_sure: Mapping[str, bool]
    can_be_shared: Mapping[str, bool]
    arms: tuple[ArmResult, ...]
    controls: tuple[PositiveControl, ...]
    interaction: Interaction | None
    notes: tuple[str, ...]

    @property
    def causes(self) -> tuple[ArmResult, ...]:
        """The arms that are candidates for a cause, in the order of the file."""
        return tuple(one for one in self.arms if one.arm.role == "cause" and one.primary)

    @property
    def strongest(self) -> tuple[ArmResult, ...]:
        """The candidates, the one that takes most of the gap first."""
        return tuple(sorted(self.causes, key=lambda one: -_value(one)))

    def level(self, arm: str, place: Place, measure: str) -> Interval | None:
        """An outcome of a network in an arm; None where the arm has no cells of it."""
        for one in (self.baseline, *self.arms):
            if one.arm.name == arm and place in one.levels:
                return one.levels[place][measure]
        return None

    @property
    def restored(self) -> ArmResult | None:
        """The arm that restores the gradients, where the file names one and it has a seed."""
        return next((one for one in self.causes if one.arm.name == self.study.restores), None)

    def restored_shares(self, seeds: Sequence[int]) -> Restored:
        """What the arm that restores the gradients found: link 4, where it is not `why_open`."""
        assert self.restored is not None
        shares = self.restored.shares[PRIMARY.name].per_seed
        by_seed = dict(zip(self.restored.seeds, shares, strict=True))
        found = changes(self.restored.arm)
        return Restored(tuple(by_seed[seed] for seed in seeds), found, self._under_sgd)

    @property
    def _under_sgd(self) -> str:
        """The control in which what restores the gradients lowers the loss under SGD, or ""."""
        restored = self.restored
        helps = [
            one.arm.name
            for one in self.controls
            if restored is not None
            and one.reacts
            and one.change.mean < 0
            and is_size_control(self.study, one.arm)
            and (one.arm.tests, one.arm.intervene) == (restored.arm.tests, restored.arm.intervene)
        ]
        return helps[0] if helps else ""

    def why_open(self, seeds: Sequence[int]) -> str:
        """Why the arm that restores the gradients says nothing of their part in the gap, or ""."""
        name, restored = self.study.restores, self.restored
        if not name:
            return "the study does not say with `restores` which arm restores the gradients"
        if any(one.arm.name == name and one.equivalence is not None for one in self.arms):
            return f"{name} multiplies gradients by a constant, which AdamW divides away again"
        done = restored.seeds if restored is not None else ()
        if restored is None or not set(seeds) <= set(done):
            return f"{name} is complete for {len(done)} of {len(self.study.seeds)} seeds"
        judged = restored.primary
        return f"{name} is left open: {judged.why}" if judged is not None and judged.why else ""

    def why_unrestored(self, sizes: Collection[str]) -> str:
        """Why the arm restores none of the gradient `sizes`, which vanish without it, or "".

        By its own records one of them still shrinks ten-fold. δ belongs to the way back through the
        network, which what touches gradients alone leaves as it is: of such an arm ŝ is asked, what
        reaches the weights.
        """
        restored = self.restored
        if restored is None or not sizes:
            return ""
        if "accused" not in restored.arm.networks:
            return f"{restored.arm.name} leaves the gradients of the accused network as they are"
        alone = changes(restored.arm) == "gradients" and "scale_invariant" in sizes
        for size in ("scale_invariant",) if alone else sizes:
            symbol = GRADIENT_SIZES[size].symbol
            decades = restored.decades["accused"].get(size, math.nan)
            if math.isnan(decades):
                return f"{symbol} was not recorded in {restored.arm.name}, or is zero there"
            if decades < -at.VANISHING_DECADES.value:
                return (
                    f"{restored.arm.name} does not restore the gradients: with it {symbol} changes "
                    f"by {decades:.1f} decades from the last to the first layer"
                )
        return ""

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "study": self.study.name,
            "question": self.study.question,
            "accused": self.study.accused.label(),
            "reference": self.study.reference.label(),
            "seeds": list(self.study.seeds),
            "gap": {
                name: _interval(found)
                | {"is_sure": self.gap_is_sure[name], "can_be_shared": self.can_be_shared[name]}
                for name, found in self.gap.items()
            },
            "arms": [_arm_json(one) for one in (self.baseline, *self.arms)],
            "controls": [
                {
                    "arm": one.arm.name,
                    "tests": one.arm.tests,
                    "seeds": list(one.seeds),
                    "change": _interval(one.change),
                    "reacts": one.reacts,
                    "diverged": list(one.diverged),
                    "checks": to_json(one.checks),
                }
                for one in self.controls
            ],
            "tuned": to_json(self.study.tuned),
            "interaction": self.interaction and _interaction_json(self.interaction),
            "notes": list(self.notes),
        }


def _value(one: ArmResult) -> float:
    value = one.shares[PRIMARY.name].value
    return value if math.isfinite(value) else -math.inf


def _arm_json(one: ArmResult) -> dict[str, Any]:
    arm = one.arm
    asked = ("name", "says", "tests", "role", "against", "networks", "dose")
    return {
        **{name: to_json(getattr(arm, name)) for name in asked},
        "series": arm.series or None,
        "seeds": list(one.seeds),
        "shares": {
            name: _interval(share.interval)
            | {
                "per_seed": to_json(share.per_seed),
                **to_json(one.judged[name]),
                "accused_gain": _interval(t_interval(share.accused_gain)),
                "reference_gain": _interval(t_interval(share.reference_gain)),
            }
            for name, share in one.shares.items()
            if name in one.judged
        },
        "levels": {
            place: {name: _interval(found) for name, found in levels.items()}
            for place, levels in one.levels.items()
        },
        "moved": one.moved,
        "checks": to_json(one.checks),
        "equivalent": one.equivalence and one.equivalence.to_json(),
        "decades": to_json(one.decades),
    }


def _interaction_json(found: Interaction) -> dict[str, Any]:
    names = {name: getattr(found, name) for name in ("first", "second", "both", "reads")}
    return _interval(found.interval) | names


def _interval(found: Interval) -> dict[str, Any]:
    ends = [found.low, found.high]
    written = {"mean": found.mean, "interval": ends, "sd": found.sd, "n_seeds": found.n}
    return dict(to_json(written))
