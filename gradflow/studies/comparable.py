"""What an arm changes, as far as it decides by which outcome and which test it can be judged."""

from collections.abc import Mapping

from gradflow.analysis.findings import Changes
from gradflow.analysis.thresholds import ATTENUATION
from gradflow.interventions import (
    GradientScale,
    Intervention,
    RandomLabels,
    Recalibrate,
    Transplant,
    parse,
)
from gradflow.studies.arms import PLACES, Arm, Place
from gradflow.studies.study import Study


def why_blind(study: Study, arm: Arm) -> str:
    """Why the training loss says nothing of an arm; "" where it does.

    It is that of the labels that a network was trained on, with recalibrated BatchNorm.
    """
    if not (arm.set or arm.tune) and all(isinstance(one, Recalibrate) for one in _added(arm)):
        return (
            "the training loss is measured with recalibrated BatchNorm in every arm, so that only "
            "the accuracy can judge it"
        )
    labels = {_labels(study, name, place) for name in (arm.name, arm.against) for place in PLACES}
    return "the training loss is that of other labels" if len(labels) > 1 else ""


def why_missing(study: Study, arm: Arm, failed: Mapping[str, str]) -> str:
    """In how many seeds it diverged, or what it starts from did; "" where none.

    Which seeds are missing then follows from how they went: the others are no sample.
    """
    for name in (arm.name, arm.against):
        n = len(diverged_seeds(study, name, arm.networks if name == arm.name else PLACES, failed))
        if n:
            who = "it" if name == arm.name else name
            return f"{who} diverged in {n} of {len(study.seeds)} seeds"
    return ""


def diverged_seeds(
    study: Study, name: str, places: tuple[Place, ...], failed: Mapping[str, str]
) -> list[int]:
    """The seeds in which the loss of one of these networks became NaN; `failed` as of a study."""
    return [
        seed
        for seed in study.seeds
        if any(
            failed.get(f"{study.trained_in(name, place)}/{place}-s{seed}", "").startswith(
                "diverged"
            )
            for place in places
        )
    ]


def changes(arm: Arm) -> Changes:
    """Whether the arm touches gradients alone."""
    added = _added(arm)
    alone = bool(added) and all(one.changes == "gradients" for one in added)
    return "gradients" if alone and not (arm.set or arm.tune) else "signal and gradients"


def is_algebra(study: Study, arm: Arm, attenuation: float) -> bool:
    """Whether the arm multiplies gradients by a constant which AdamW divides away again.

    m̂ / (√v̂ + ε) stays as it is as far as ε takes no part: `attenuation` is the baseline's mean
    √v̂ / (√v̂ + ε), NaN where it was not recorded. Such an arm controls the machinery; that it
    changes nothing was known before, and is no evidence.
    """
    added = _added(arm)
    return (
        arm.role == "cause"
        and not (arm.set or arm.tune)
        and bool(added)
        and all(isinstance(one, GradientScale) for one in added)
        and all(study.config(arm.name, place, study.seeds[0]).optimizer == "adamw"
                for place in arm.networks)
        and not attenuation < ATTENUATION.value
    )  # fmt: skip


def is_size_control(study: Study, arm: Arm) -> bool:
    """Whether the arm changes the size of the accused's gradients under SGD; lr may be tuned."""
    added = _added(arm)
    return (
        "accused" in arm.networks
        and bool(added)
        and all(isinstance(one, GradientScale | Transplant) for one in added)
        and study.config(arm.name, "accused", study.seeds[0]).optimizer == "sgd"
    )


def _added(arm: Arm) -> tuple[Intervention, ...]:
    return parse(arm.intervene)


def _labels(study: Study, name: str, place: Place) -> tuple[str, ...]:
    interventions = study.config(name, place, study.seeds[0]).interventions
    return tuple(str(one) for one in interventions if isinstance(one, RandomLabels) and one.share)
