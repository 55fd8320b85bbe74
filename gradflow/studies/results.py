"""The analysis of a study: which share of the gap each arm takes away, and what that makes it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradflow.analysis import thresholds as at
from gradflow.analysis.shares import (
    ALPHA,
    Interaction,
    Judged,
    Share,
    gap_status,
    interaction,
    is_wide_gap,
    judge_shares,
)
from gradflow.analysis.statistics import Interval, mean, p_beyond, p_equivalent, t_interval
from gradflow.analysis.verdict import Restored
from gradflow.studies.comparable import (
    changes,
    diverged_seeds,
    is_algebra,
    is_size_control,
    why_blind,
    why_missing,
)
from gradflow.studies.folder import StudyDir
from gradflow.studies.outcomes import MEASURES, Measure, Outcome, Outcomes, failures, read_outcomes
from gradflow.studies.study import BASELINE, PLACES, Arm, Place, Study
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
class Control:
    """A positive control: an arm that must change the training, else others prove nothing."""

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
    controls: tuple[Control, ...]
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
        """What the arm that restores the gradients found: link 4 of a verdict.

        Raises ValueError where it proves nothing: see `why_open`.
        """
        if why := self.why_open(seeds):
            raise ValueError(f"Expected an arm that can be judged for link 4, but {why}.")
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
            "interaction": _interaction_json(self.interaction),
            "notes": list(self.notes),
        }


def analyse(folder: StudyDir, failed: Mapping[str, str] | None = None) -> Results:
    """What the finished cells of a study say so far; `failed` adds to what they wrote of it."""
    study = folder.study()
    written = failures(folder, study)
    outcomes, damaged = read_outcomes(folder, study)
    return results(study, outcomes, written | damaged | dict(failed or {}))


def results(study: Study, outcomes: Outcomes, failed: Mapping[str, str] | None = None) -> Results:
    """The analysis, a pure function of what the cells left."""
    failed = failed or {}
    notes = [f"{name} {why}" for name, why in failed.items()]
    baseline = _seeds(study, outcomes, study.arm(BASELINE))
    gaps = {
        measure.name: _gaps(study, outcomes, BASELINE, baseline, measure) for measure in MEASURES
    }
    controls = [
        _control(study, outcomes, arm, failed)
        for arm in study.arms
        if arm.role == "positive control"
    ]
    plain = [_arm_result(study, outcomes, arm) for arm in study.arms if arm.name != BASELINE]
    arms = _judged(study, [one for one in plain if one.seeds], controls, failed)
    notes += [
        f"{arm.name} ({study.network(place).arch}): no {name} could be chosen."
        for arm in study.arms
        for place in arm.networks
        for name in arm.tune
        if study.choice(arm, place) is None
    ]
    notes += [
        f"{one.arm.name}: {len(one.seeds)} of {len(study.seeds)} seeds are complete."
        for one in plain
        if len(one.seeds) < len(study.seeds)
    ]
    if study.combine == "strongest" and not any(" + " in name for name in study.names):
        notes.append(
            "The two strongest arms are combined when every training has ended, if they changed "
            "what they say and do not exclude each other."
        )
    return Results(
        study,
        _arm_result(study, outcomes, study.arm(BASELINE)),
        {
            measure.name: t_interval(gaps[measure.name], bounds=measure.gap_bounds)
            for measure in MEASURES
        },
        {one.name: gap_status(gaps[one.name], one.small) == "yes" for one in MEASURES},
        {one.name: is_wide_gap(gaps[one.name], one.margin) for one in MEASURES},
        tuple(arms),
        tuple(controls),
        _interaction(study, arms),
        tuple(notes),
    )


def _seeds(study: Study, outcomes: Outcomes, arm: Arm) -> tuple[int, ...]:
    """Those for which the arm and the one that it is compared with are complete."""
    needed = {
        (study.trained_in(name, place), place)
        for name in (arm.name, arm.against)
        for place in (arm.networks if arm.role == "positive control" else PLACES)
    }
    return tuple(
        seed
        for seed in study.seeds
        if all((name, place, seed) in outcomes for name, place in needed)
    )


def _of(study: Study, outcomes: Outcomes, name: str, place: Place, seed: int) -> Outcome:
    return outcomes[study.trained_in(name, place), place, seed]


def _badness(
    study: Study,
    outcomes: Outcomes,
    name: str,
    place: Place,
    seeds: Sequence[int],
    measure: Measure,
) -> np.ndarray:
    return np.array(
        [_of(study, outcomes, name, place, seed).badness(measure) for seed in seeds], dtype=float
    )


def _gaps(
    study: Study, outcomes: Outcomes, name: str, seeds: Sequence[int], measure: Measure
) -> np.ndarray:
    """(seeds,) how much worse the accused network is than the reference."""
    accused, reference = (
        _badness(study, outcomes, name, place, seeds, measure) for place in PLACES
    )
    return np.asarray(accused - reference)


def _arm_result(study: Study, outcomes: Outcomes, arm: Arm) -> ArmResult:
    seeds = _seeds(study, outcomes, arm)
    shares = {}
    for measure in MEASURES if arm.role == "cause" else ():
        gain = [
            _badness(study, outcomes, arm.against, place, seeds, measure)
            - _badness(study, outcomes, arm.name, place, seeds, measure)
            for place in PLACES
        ]
        gap = _gaps(study, outcomes, arm.against, seeds, measure)
        shares[measure.name] = Share(
            tuple(gap), tuple(gain[0]), tuple(gain[1]),
            treats_accused="accused" in arm.networks, margin=measure.margin,
        )  # fmt: skip
    cells = {place: [outcomes[arm.name, place, seed] for seed in seeds] for place in arm.networks}
    return ArmResult(
        arm,
        seeds,
        shares,
        {},
        {place: _levels(found) for place, found in cells.items()},
        tuple(check for place, found in cells.items() for check in _mean_checks(place, found)),
        {place: _mean_decades(found) for place, found in cells.items()},
        mean([one.seconds for found in cells.values() for one in found]),
        _equivalence(study, outcomes, arm, shares),
    )


def _equivalence(
    study: Study, outcomes: Outcomes, arm: Arm, shares: Mapping[str, Share]
) -> Equivalence | None:
    attenuation = mean([one.attenuation for (name, place, _), one in outcomes.items()
                         if (name, place) == (BASELINE, "accused")])  # fmt: skip
    if PRIMARY.name not in shares or not is_algebra(study, arm, attenuation):
        return None
    change = -np.asarray(shares[PRIMARY.name].accused_gain)
    return Equivalence(t_interval(change), p_equivalent(change, at.LOSS_MARGIN.value))


def _levels(found: Sequence[Outcome]) -> dict[str, Interval]:
    return {
        measure.name: t_interval(
            [getattr(one, measure.name) for one in found], bounds=measure.bounds
        )
        for measure in MEASURES
    }


def _mean_decades(found: Sequence[Outcome]) -> dict[str, float]:
    sizes = sorted({size for one in found for size in one.decades})
    return {size: mean([one.decades.get(size, math.nan) for one in found]) for size in sizes}


def _mean_checks(place: Place, found: Sequence[Outcome]) -> tuple[dict[str, Any], ...]:
    """Each check of a network once: its mean over seeds, and passed only if it did in all."""
    by_name: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in found:
        for check in one.checks:
            by_name.setdefault((check["of"], check["what"]), []).append(check)
    merged = []
    for (of, what), checks in by_name.items():
        verdicts = [check["passed"] for check in checks if check["passed"] is not None]
        merged.append(
            {
                "network": place,
                "of": of,
                "what": what,
                "measured": _common([check["measured"] for check in checks]),
                "expected": _common([check["expected"] for check in checks
                                     if check["expected"] is not None]),
                "passed": all(verdicts) if verdicts else None,
            }
        )  # fmt: skip
    return tuple(merged)


def _common(values: Sequence[Any]) -> Any:
    """The mean of numbers, and what is the same of all else."""
    if not values:
        return None
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return mean([float(value) for value in values])
    return values[0] if len(set(map(str, values))) == 1 else "differs"


def _control(study: Study, outcomes: Outcomes, arm: Arm, failed: Mapping[str, str]) -> Control:
    """Whether the training loss of the network that the arm treats moved beyond the margin.

    One of the controls of an explanation has to react: with Bonferroni's correction over them. What
    did not change what it says shows nothing, however the loss moved.
    """
    plain = _arm_result(study, outcomes, arm)
    place = arm.networks[0]
    change = _badness(study, outcomes, arm.name, place, plain.seeds, PRIMARY) - _badness(
        study, outcomes, arm.against, place, plain.seeds, PRIMARY
    )
    n = sum(one.role == "positive control" and one.tests == arm.tests for one in study.arms)
    margin = at.LOSS_MARGIN.value
    p = min(p_beyond(change, margin, "above"), p_beyond(change, -margin, "below"))
    did = all(check["passed"] is not False for check in plain.checks)
    diverged = tuple(diverged_seeds(study, arm.name, arm.networks, failed))
    return Control(
        arm, plain.seeds, t_interval(change), p <= ALPHA / n and did, plain.checks, diverged
    )


def _judged(
    study: Study,
    arms: Sequence[ArmResult],
    controls: Sequence[Control],
    failed: Mapping[str, str],
) -> list[ArmResult]:
    """Each arm with what it is, after Holm's correction over the candidates of the study."""
    candidates = [one for one in arms if one.arm.role == "cause" and one.equivalence is None]
    judged: dict[str, dict[str, Judged]] = {one.arm.name: {} for one in arms}
    for measure in MEASURES:
        blind = [why_blind(study, one.arm) if measure == PRIMARY else "" for one in candidates]
        found = judge_shares(
            [one.shares[measure.name] for one in candidates],
            [one.moved for one in candidates],
            [
                why or why_missing(study, one.arm, failed) or _unsound(one, controls)
                or _unshared(one, measure)
                for one, why in zip(candidates, blind, strict=True)
            ],
        )  # fmt: skip
        for one, what in zip(candidates, found, strict=True):
            judged[one.arm.name][measure.name] = what
    return [replace(one, judged=judged[one.arm.name]) for one in arms]


def _unsound(one: ArmResult, controls: Sequence[Control]) -> str:
    """Why an arm may not be judged; "" where it may. The gap must be sure as for a verdict."""
    if len(one.seeds) < at.MIN_SEEDS.value:
        return f"{len(one.seeds)} seeds cannot decide; {at.MIN_SEEDS.value} are the least"
    if deaf := _deaf_controls(one, controls):
        return f"no positive control reacted ({deaf})"
    open_gaps = [
        measure.title
        for measure in MEASURES
        if gap_status(one.shares[measure.name].gap, measure.small) != "yes"
    ]
    named = " and ".join(open_gaps)
    return f"the gap in {named} is not surely above zero, or too small to matter" if named else ""


def _unshared(one: ArmResult, measure: Measure) -> str:
    wide = one.shares[measure.name].can_be_shared
    return "" if wide else f"the gap in {measure.title} is not surely above {measure.margin:g}"


def _deaf_controls(one: ArmResult, controls: Sequence[Control]) -> str:
    """The positive controls of this explanation, where none of them reacted; else ""."""
    theirs = [control for control in controls if control.arm.tests == one.arm.tests]
    if any(control.reacts for control in theirs):
        return ""
    return ", ".join(control.silent for control in theirs)


def _interaction(study: Study, arms: Sequence[ArmResult]) -> Interaction | None:
    """The 2 × 2, where an arm combines two others and all three have the same seeds."""
    by_name = {one.arm.name: one for one in arms}
    for one in arms:
        first, plus, second = one.arm.name.partition(" + ")
        if not plus or first not in by_name or second not in by_name:
            continue
        three = (by_name[first], by_name[second], one)
        if len({arm.seeds for arm in three}) == 1:
            shares = tuple(arm.shares[PRIMARY.name] for arm in three)
            return interaction((first, second, one.arm.name), (shares[0], shares[1], shares[2]))
    return None


def _value(one: ArmResult) -> float:
    value = one.shares[PRIMARY.name].value
    return value if math.isfinite(value) else -math.inf


def _arm_json(one: ArmResult) -> dict[str, Any]:
    return {
        "name": one.arm.name,
        "says": one.arm.says,
        "tests": one.arm.tests,
        "role": one.arm.role,
        "against": one.arm.against,
        "networks": list(one.arm.networks),
        "series": one.arm.series or None,
        "dose": one.arm.dose,
        "seeds": list(one.seeds),
        "shares": {
            name: _interval(share.interval)
            | {
                "per_seed": to_json(share.per_seed),
                "status": one.judged[name].status,
                "why": one.judged[name].why,
                "p_main": one.judged[name].p_main,
                "p_contributor": one.judged[name].p_contributor,
                "p_none": one.judged[name].p_none,
                "p_widens": one.judged[name].p_widens,
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
        "equivalent": _equivalence_json(one.equivalence),
        "decades": {place: to_json(sizes) for place, sizes in one.decades.items()},
    }


def _equivalence_json(found: Equivalence | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "change": _interval(found.change),
        "margin": at.LOSS_MARGIN.value,
        "p": found.p,
        "holds": found.holds,
    }


def _interaction_json(found: Interaction | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return _interval(found.interval) | {
        "first": found.first,
        "second": found.second,
        "both": found.both,
        "reads": found.reads,
    }


def _interval(found: Interval) -> dict[str, Any]:
    ends = [found.low, found.high]
    written = {"mean": found.mean, "interval": ends, "sd": found.sd, "n_seeds": found.n}
    return dict(to_json(written))
