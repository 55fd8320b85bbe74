"""The rival explanations of a gap, H2 to H10, each from what was recorded and examined.

Every rival is one question with evidence per seed: consistent with the data, inconsistent,
undetermined or not measured. Consistent does not mean causal: see `verdict.py`.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from gradflow.analysis import details
from gradflow.analysis import mediators as read
from gradflow.analysis import thresholds as at
from gradflow.analysis.case import Case
from gradflow.analysis.findings import Evidence, Finding, Side, all_of
from gradflow.analysis.network import TrainedNetwork
from gradflow.analysis.statistics import p_beyond
from gradflow.analysis.thresholds import Threshold
from gradflow.analysis.vanishing import decades

EXAMINE = "the weights at {steps} (`gradflow diagnose RUN --measure`)"


def rivals(case: Case) -> list[Finding]:
    """Every rival explanation, in the order of their numbers."""
    return [ask(case) for ask in (
        explosion, shattering, dead_units, frozen_schedule, batchnorm_mismatch, overfitting,
        gradient_noise, rank_collapse, roughness,
    )]  # fmt: skip


def explosion(case: Case) -> Finding:
    """H2: the gradients explode towards the input at the start, and early steps overshoot."""

    def start(one: TrainedNetwork) -> float:
        return decades(one, "output_gradient", read.first_step(one))

    evidence = (
        _of_accused(
            case, "start_decades",
            f"the change of {case.name}'s δ from the last to the first layer at the first recorded "
            "step",
            "decades", start, at.VANISHING_DECADES, at.VANISHING_DECADES.value, "above",
        ),
        _of_pairs(
            case, "start_excess",
            f"that of {case.name} less that of {case.reference_name}",
            "decades", lambda mine, theirs: start(mine) - start(theirs),
            at.START_EXCESS, at.START_EXCESS.value, "above",
        ),
        _of_accused(
            case, "early_share",
            "of the first-order change of the loss that the weights of the path make early in "
            f"training, the share of the first third of {case.name}'s layers",
            "",
            read.share_of_first_third, at.EXPLODING_SHARE, at.EXPLODING_SHARE.value, "above",
        ),
        _of_accused(
            case, "early_linearity",
            f"the part of the promised fall of the loss that an early step of {case.name} brings",
            "",
            lambda one: read.linearity(one, read.is_early_step),
            at.LINEARITY, at.LINEARITY.value, "below",
        ),
    )  # fmt: skip
    return _finding("H2", "explosion at the start",
                    "Do the gradients explode towards the input, so that early steps overshoot?",
                    evidence, "steps 0 and 1")  # fmt: skip


def shattering(case: Case) -> Finding:
    """H3: the input gradient loses its direction over shorter ways than in the reference."""

    def ratio(step: str) -> Callable[[TrainedNetwork, TrainedNetwork], float]:
        def number(mine: TrainedNetwork, theirs: TrainedNetwork) -> float:
            return read.log(read.decorrelation(mine, step)) - read.log(
                read.decorrelation(theirs, step)
            )

        return number

    evidence = tuple(
        _of_pairs(
            case, f"decorrelation_{step}",
            f"the way over which the input gradient keeps its direction at step {step}, "
            f"{case.name} over {case.reference_name},",
            "×", ratio(step),
            at.SHATTERED_RATIO, math.log10(at.SHATTERED_RATIO.value), "below",
        )
        for step in ("0", "90")
    )  # fmt: skip
    return _finding("H3", "shattered gradients",
                    "Does the gradient change its direction from one image to the next?",
                    evidence, "steps 0 and 90")  # fmt: skip


def dead_units(case: Case) -> Finding:
    """H4: channels whose ReLU never lets anything through."""

    def excess(mine: TrainedNetwork, theirs: TrainedNetwork) -> float:
        # Step 90 or, in a shorter training, the end: the same step of both.
        for step in ("90", "end"):
            mine_dead, others = read.dead(mine, step), read.dead(theirs, step)
            common = [stage for stage in mine_dead if stage in others]
            if common:
                return max(mine_dead[stage] - others[stage] for stage in common)
        return math.nan

    evidence = (
        _of_pairs(
            case, "dead_excess",
            f"the share of dead channels in {case.name} less that in {case.reference_name}, in the "
            "stage where it is largest, at step 90 or else at the end,",
            "", excess, at.DEAD_EXCESS, at.DEAD_EXCESS.value, "above",
        ),
    )  # fmt: skip
    return _finding("H4", "dead units", "Are more channels dead, for every training image?",
                    evidence, "step 90")  # fmt: skip


def frozen_schedule(case: Case) -> Finding:
    """H5: the schedule stops the learning before the slower network has learned."""

    def fall_ratio(mine: TrainedNetwork, theirs: TrainedNetwork) -> float:
        of_reference = read.fall_until_drop(theirs)  # of the accused it may be below zero
        return read.fall_until_drop(mine) / of_reference if of_reference > 0 else math.nan

    evidence = (
        _of_accused(
            case, "changed_fraction",
            f"the share of {case.name}'s weights whose bits a step changes, in the last tenth of "
            "the training,",
            "", read.changed_at_the_end, at.FROZEN_FRACTION, at.FROZEN_FRACTION.value, "below",
        ),
        _of_accused(
            case, "slope_at_drop",
            f"the slope of {case.name}'s training loss before the learning rate first drops",
            "nats per step", read.slope_at_drop,
            at.STILL_FALLING, at.STILL_FALLING.value, "below",
        ),
        _of_pairs(
            case, "fall_to_reference",
            f"the fall of the training loss until then, {case.name} over "
            f"{case.reference_name},",
            "", fall_ratio, at.SLOWER_RATIO, at.SLOWER_RATIO.value, "below",
        ),
    )  # fmt: skip
    missing = () if all(one.is_measured for one in evidence) else (
        "the learning rate and the training loss of every step, and a fall of the learning rate",
    )  # fmt: skip
    return _finding("H5", "a schedule that freezes learning",
                    "Did the learning rate fall away before the slower network had learned?",
                    evidence, missing=missing, more=details.slopes_at_drops(case))  # fmt: skip


def batchnorm_mismatch(case: Case) -> Finding:
    """H6: BatchNorm's running statistics differ from those of the final weights."""

    def more_than_a_quarter(mine: TrainedNetwork, theirs: TrainedNetwork) -> float:
        gap = read.test_loss(mine) - read.test_loss(theirs)
        return read.mode_mismatch(mine) - at.MODE_SHARE.value * gap

    evidence = (
        _of_pairs(
            case, "mode_share",
            f"what recalibrated BatchNorm statistics take from {case.name}'s test loss, less a "
            "quarter of the gap,",
            "nats", more_than_a_quarter, at.MODE_SHARE, 0.0, "above",
        ),
        _of_pairs(
            case, "mode_excess",
            f"what they take from {case.name}'s test loss less what they take from "
            f"{case.reference_name}'s",
            "nats", lambda mine, theirs: read.mode_mismatch(mine) - read.mode_mismatch(theirs),
            at.MODE_EXCESS, at.MODE_EXCESS.value, "above",
        ),
    )  # fmt: skip
    return _of_a_gap(case, "H6", "BatchNorm: training against evaluation",
                     "Does the network only look bad because its BatchNorm statistics lag behind?",
                     evidence, details.batchnorm_modes(case))  # fmt: skip


def overfitting(case: Case) -> Finding:
    """H7: the gap is there on test images and not on training images."""

    def more_than_half(mine: TrainedNetwork, theirs: TrainedNetwork) -> float:
        at_test = read.test_loss(mine) - read.test_loss(theirs)
        at_training = read.train_loss(mine) - read.train_loss(theirs)
        return (at_test - at_training) - at.GENERALISATION_SHARE.value * at_test

    evidence = (
        _of_pairs(
            case, "generalisation_share",
            "the part of the gap in test loss that is not there on the training images, under the "
            "same transform and BatchNorm mode, less half of the gap,",
            "nats", more_than_half, at.GENERALISATION_SHARE, 0.0, "above",
        ),
    )  # fmt: skip
    return _of_a_gap(case, "H7", "overfitting",
                     f"Does {case.name} learn the training images and fail to generalise?",
                     evidence, details.decomposition(case))  # fmt: skip


def gradient_noise(case: Case) -> Finding:
    """H8: the gradients of single batches disagree so much that steps are a random walk."""
    evidence = (
        _of_accused(
            case, "update_rms",
            f"Adam's rms step in the first third of {case.name}'s layers (0.229 is pure noise)",
            "", read.update_rms, at.NOISE_UPDATE_RMS, at.NOISE_UPDATE_RMS.value, "below",
        ),
        _of_pairs(
            case, "update_rms_to_reference",
            f"that of {case.name} less that of {case.reference_name}",
            "", lambda mine, theirs: read.update_rms(mine) - read.update_rms(theirs),
            at.NOISE_EXCESS, at.NOISE_EXCESS.value, "below",
        ),
    )  # fmt: skip
    missing = () if all(one.is_measured for one in evidence) else (
        "adam_update_rms of both networks over more than 10 steps of the first learning rate "
        "(`gradflow train --log-grads` records it under AdamW)",
    )  # fmt: skip
    return _finding("H8", "gradient noise",
                    "Do the gradients of the early layers hold too little signal?",
                    evidence, missing=missing, more=details.noise_scales(case))  # fmt: skip


def rank_collapse(case: Case) -> Finding:
    """H9: deep features span few directions, and a linear classifier reads less from them."""

    def ratio(mine: TrainedNetwork, theirs: TrainedNetwork) -> float:
        return read.log(read.deep_rank(mine)) - read.log(read.deep_rank(theirs))

    evidence = (
        _of_pairs(
            case, "rank_to_reference",
            f"the effective rank of the deepest third of the features at the start, "
            f"{case.name} over {case.reference_name},",
            "×", ratio, at.RANK_RATIO, math.log10(at.RANK_RATIO.value), "below",
        ),
        _of_accused(
            case, "probe_drop",
            f"what a linear classifier loses from {case.name}'s best features to its deepest at "
            "the start",
            "accuracy", read.probe_drop, at.PROBE_DROP, at.PROBE_DROP.value, "above",
        ),
    )  # fmt: skip
    return _finding("H9", "rank collapse", "Do the features lose information with depth?",
                    evidence, "steps 0 and 10")  # fmt: skip


def roughness(case: Case) -> Finding:
    """H10: the loss bends away from the gradient sooner than in the reference network."""
    evidence = (
        _of_pairs(
            case, "linearity_to_reference",
            f"the part of the promised fall of the loss that a step brings after the first ones, "
            f"{case.name} less {case.reference_name},",
            "", lambda mine, theirs: read.linearity(mine, read.is_later_step)
            - read.linearity(theirs, read.is_later_step),
            at.LINEARITY_GAP, -at.LINEARITY_GAP.value, "below",
        ),
    )  # fmt: skip
    return _finding("H10", "roughness", "Does the loss bend away from its gradient sooner?",
                    evidence, "steps 10, 11, 90 and 91")  # fmt: skip


# -- building ------------------------------------------------------------------------------------


def _of_accused(
    case: Case,
    name: str,
    meaning: str,
    unit: str,
    number: Callable[[TrainedNetwork], float],
    threshold: Threshold,
    limit: float,
    side: Side,
) -> Evidence:
    return Evidence(name, meaning, unit, case.each(number), threshold, limit, side)


def _of_pairs(
    case: Case,
    name: str,
    meaning: str,
    unit: str,
    number: Callable[[TrainedNetwork, TrainedNetwork], float],
    threshold: Threshold,
    limit: float,
    side: Side,
) -> Evidence:
    return Evidence(name, meaning, unit, case.pairs(number), threshold, limit, side)


def _finding(
    key: str,
    title: str,
    question: str,
    evidence: tuple[Evidence, ...],
    steps: str | None = None,
    *,
    missing: tuple[str, ...] = (),
    more: tuple[str, ...] = (),
) -> Finding:
    """A rival holds only if all of its evidence does."""
    if steps is not None and not all(one.is_measured for one in evidence):
        missing = (EXAMINE.format(steps=steps),)
    p_for, p_against = all_of(evidence)
    return Finding(key, title, question, evidence, p_for, p_against, missing, more)


def _of_a_gap(
    case: Case,
    key: str,
    title: str,
    question: str,
    evidence: tuple[Evidence, ...],
    more: tuple[str, ...],
) -> Finding:
    """A rival about the gap in test loss; it cannot hold before that gap is surely there."""
    found = _finding(key, title, question, evidence, "the end", more=more)
    gaps = case.pairs(lambda mine, theirs: read.test_loss(mine) - read.test_loss(theirs))
    if not found.is_measured or p_beyond(gaps, 0.0, "above") <= 1 - at.CONFIDENCE.value:
        return found
    missing = ("a gap in test loss that is surely above zero",)
    return replace(found, p_for=1.0, missing=missing)
