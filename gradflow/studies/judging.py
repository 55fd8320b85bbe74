"""From the outcomes of a study to its results: which share of the gap each arm takes away."""

import math
from collections.abc import Collection, Mapping, Sequence
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
from gradflow.studies.arms import BASELINE, PLACES, Arm, Place
from gradflow.studies.comparable import diverged_seeds, is_algebra, why_blind, why_missing
from gradflow.studies.folder import StudyDir
from gradflow.studies.outcomes import (
    MEASURES,
    Outcome,
    OutcomeMeasure,
    Outcomes,
    failures,
    read_outcomes,
)
from gradflow.studies.results import PRIMARY, ArmResult, Equivalence, PositiveControl, Results
from gradflow.studies.study import Study


def analyse(folder: StudyDir, failed: Mapping[str, str] | None = None) -> Results:
    """What the finished cells of a study say so far; `failed` adds to what they wrote of it."""
    study = folder.study()
    written = failures(folder, study)
    outcomes, damaged = read_outcomes(folder, study)
    failed = written | damaged | dict(failed or {})
    unbegun = [arm.name for arm in study.arms if not folder.has_begun(arm.name)]
    return results(study, outcomes, failed, unbegun)


def results(
    study: Study,
    outcomes: Outcomes,
    failed: Mapping[str, str] | None = None,
    unbegun: Collection[str] = (),
) -> Results:
    """The analysis, a pure function of what the cells left and of the arms that have none yet."""
    failed = failed or {}
    notes = [f"{name} {why}" for name, why in failed.items()]
    trained = _Trained(study, outcomes)
    baseline = trained.seeds(study.arm(BASELINE))
    gaps = {measure.name: trained.gaps(BASELINE, baseline, measure) for measure in MEASURES}
    controls = [
        _control(trained, arm, failed) for arm in study.arms if arm.role == "positive control"
    ]
    plain = [_arm_result(trained, arm) for arm in study.arms if arm.name != BASELINE]
    arms = _judged(study, [one for one in plain if one.seeds], controls, failed)
    notes += [
        f"{arm.name} ({study.network(place).arch}): no {name} could be chosen."
        for arm in study.arms
        for place in arm.networks
        for name in arm.tune
        if study.choice(arm, place) is None and arm.name not in unbegun
    ]
    notes += [
        f"{one.arm.name}: {len(one.seeds)} of {len(study.seeds)} seeds are complete."
        for one in plain
        if len(one.seeds) < len(study.seeds) and one.arm.name not in unbegun
    ]
    is_sure = {one.name: gap_status(gaps[one.name], one.small) == "yes" for one in MEASURES}
    if is_sure[PRIMARY.name]:
        notes += trained.saturation()
    if unbegun:
        notes.append(f"Not trained yet: {', '.join(unbegun)}.")
    if _combines_later(study):
        notes.append(
            "The two strongest arms are combined when every training has ended, if they changed "
            "what they say and do not exclude each other."
        )
    return Results(
        study,
        _arm_result(trained, study.arm(BASELINE)),
        {
            measure.name: t_interval(gaps[measure.name], bounds=(-measure.largest, measure.largest))
            for measure in MEASURES
        },
        is_sure,
        {one.name: is_wide_gap(gaps[one.name], one.margin) for one in MEASURES},
        tuple(arms),
        tuple(controls),
        _interaction(study, arms),
        tuple(notes),
    )


@dataclass(frozen=True)
class _Trained:
    """The outcomes of a study by arm: where an arm leaves a network alone, those of `against`."""

    study: Study
    outcomes: Outcomes

    def seeds(self, arm: Arm) -> tuple[int, ...]:
        """Those for which the arm and the one that it is compared with are complete."""
        needed = {
            (self.study.trained_in(name, place), place)
            for name in (arm.name, arm.against)
            for place in (arm.networks if arm.role == "positive control" else PLACES)
        }
        return tuple(
            seed
            for seed in self.study.seeds
            if all((name, place, seed) in self.outcomes for name, place in needed)
        )

    def badness(
        self, arm: str, place: Place, seeds: Sequence[int], measure: OutcomeMeasure
    ) -> np.ndarray:
        """(seeds,) larger is worse."""
        name = self.study.trained_in(arm, place)
        found = [getattr(self.outcomes[name, place, seed], measure.name) for seed in seeds]
        return measure.sign * np.array(found, dtype=float)

    def gaps(self, arm: str, seeds: Sequence[int], measure: OutcomeMeasure) -> np.ndarray:
        """(seeds,) how much worse the accused network is than the reference."""
        accused, reference = (self.badness(arm, place, seeds, measure) for place in PLACES)
        return _less(accused, reference)

    def saturation(self) -> list[str]:
        """That the reference has no training loss left to gain, where it has none: a line."""
        left = mean([one.train_loss - one.loss_floor for key, one in self.outcomes.items()
                     if key[:2] == (BASELINE, "reference")])  # fmt: skip
        if not left < at.LOSS_MARGIN.value:
            return []
        return [
            f"{self.study.reference.label()} ends {left:.3f} nats above the least training loss "
            f"that there is: it can hardly gain. What lets {self.study.accused.label()} finish "
            "closes the gap, whatever made it slower."
        ]

    def gain(
        self, arm: Arm, place: Place, seeds: Sequence[int], measure: OutcomeMeasure
    ) -> np.ndarray:
        """(seeds,) by how much the arm lowers the badness of a network."""
        before = self.badness(arm.against, place, seeds, measure)
        return _less(before, self.badness(arm.name, place, seeds, measure))


def _less(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # of two that failed nothing can be said: NaN
        return np.asarray(one - other)


def _arm_result(trained: _Trained, arm: Arm) -> ArmResult:
    seeds = trained.seeds(arm)
    shares = {}
    for measure in MEASURES if arm.role == "cause" else ():
        gain = [trained.gain(arm, place, seeds, measure) for place in PLACES]
        gap = trained.gaps(arm.against, seeds, measure)
        shares[measure.name] = Share(
            tuple(gap), tuple(gain[0]), tuple(gain[1]),
            treats_accused="accused" in arm.networks, margin=measure.margin,
        )  # fmt: skip
    cells = {
        place: [trained.outcomes[arm.name, place, seed] for seed in seeds] for place in arm.networks
    }
    return ArmResult(
        arm,
        seeds,
        shares,
        {},
        {place: _levels(found) for place, found in cells.items()},
        tuple(check for place, found in cells.items() for check in _mean_checks(place, found)),
        {place: _mean_decades(found) for place, found in cells.items()},
        mean([one.seconds for found in cells.values() for one in found]),
        _equivalence(trained, arm, shares),
    )


def _equivalence(trained: _Trained, arm: Arm, shares: Mapping[str, Share]) -> Equivalence | None:
    attenuation = mean([one.attenuation for (name, place, _), one in trained.outcomes.items()
                         if (name, place) == (BASELINE, "accused")])  # fmt: skip
    if PRIMARY.name not in shares or not is_algebra(trained.study, arm, attenuation):
        return None
    change = -np.asarray(shares[PRIMARY.name].accused_gain)
    return Equivalence(t_interval(change), p_equivalent(change, at.LOSS_MARGIN.value))


def _levels(found: Sequence[Outcome]) -> dict[str, Interval]:
    return {
        measure.name: t_interval(
            [getattr(one, measure.name) for one in found], bounds=(0.0, measure.largest)
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


def _control(trained: _Trained, arm: Arm, failed: Mapping[str, str]) -> PositiveControl:
    """Whether the training loss of the network that the arm treats moved beyond the margin.

    One of the controls of an explanation has to react: with Bonferroni's correction over them. What
    did not change what it says shows nothing, however the loss moved.
    """
    study, plain = trained.study, _arm_result(trained, arm)
    after, before = (
        trained.badness(name, arm.networks[0], plain.seeds, PRIMARY)
        for name in (arm.name, arm.against)
    )
    change = after - before
    n = sum(one.role == "positive control" and one.tests == arm.tests for one in study.arms)
    margin = at.LOSS_MARGIN.value
    p = min(p_beyond(change, margin, "above"), p_beyond(change, -margin, "below"))
    did = all(check["passed"] is not False for check in plain.checks)
    diverged = tuple(diverged_seeds(study, arm.name, arm.networks, failed))
    return PositiveControl(
        arm, plain.seeds, t_interval(change), p <= ALPHA / n and did, plain.checks, diverged
    )


def _combines_later(study: Study) -> bool:
    """Whether the arm that combines the two strongest is still to come."""
    if study.combine != "strongest" or any(arm.parts for arm in study.arms):
        return False
    causes = [arm.name for arm in study.arms if arm.role == "cause"]
    return any(study.combinable(causes))


def _judged(
    study: Study,
    arms: Sequence[ArmResult],
    controls: Sequence[PositiveControl],
    failed: Mapping[str, str],
) -> list[ArmResult]:
    """Each arm with what it is, after Holm's correction over the candidates of the study.

    Those that are not trained yet count: the study asks about them too.
    """
    candidates = [one for one in arms if one.arm.role == "cause" and one.equivalence is None]
    known = {one.arm.name for one in arms}
    n_open = sum(arm.role == "cause" and arm.name not in known for arm in study.arms)
    n_open += _combines_later(study)
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
            n_open=n_open,
        )  # fmt: skip
        for one, what in zip(candidates, found, strict=True):
            judged[one.arm.name][measure.name] = what
    return [replace(one, judged=judged[one.arm.name]) for one in arms]


def _unsound(one: ArmResult, controls: Sequence[PositiveControl]) -> str:
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


def _unshared(one: ArmResult, measure: OutcomeMeasure) -> str:
    share = one.shares[measure.name]
    if not share.is_finite:
        return f"the {measure.title} of a seed is not finite"
    wide = share.can_be_shared
    return "" if wide else f"the gap in {measure.title} is not surely above {measure.margin:g}"


def _deaf_controls(one: ArmResult, controls: Sequence[PositiveControl]) -> str:
    """The positive controls of this explanation, where none of them reacted; else ""."""
    theirs = [control for control in controls if control.arm.tests == one.arm.tests]
    if any(control.reacts for control in theirs):
        return ""
    return ", ".join(control.silent for control in theirs)


def _interaction(study: Study, arms: Sequence[ArmResult]) -> Interaction | None:
    """The 2 × 2, where an arm combines two others and all three have the same seeds."""
    by_name = {one.arm.name: one for one in arms}
    for one in arms:
        if not one.arm.parts or not set(one.arm.parts) <= set(by_name):
            continue
        first, second = one.arm.parts
        three = (by_name[first], by_name[second], one)
        if len({arm.seeds for arm in three}) == 1:
            shares = tuple(arm.shares[PRIMARY.name] for arm in three)
            return interaction((first, second, one.arm.name), (shares[0], shares[1], shares[2]))
    return None
