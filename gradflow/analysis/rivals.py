"""The rival explanations of a gap, H4 to H9, each from what was recorded and examined.

Every rival is one question with evidence per seed: consistent with the data, inconsistent,
undetermined or not measured. Consistent does not mean causal: see `verdict.py`. Each was tried on
networks with that very defect, planted, and on networks with another: see `TRIED`.
"""

import math
from dataclasses import dataclass, replace

from gradflow.analysis import mediators as read
from gradflow.analysis import thresholds as at
from gradflow.analysis.case import Case
from gradflow.analysis.findings import Evidence, Finding, all_of
from gradflow.analysis.network import TrainedNetwork
from gradflow.analysis.numerals import part
from gradflow.analysis.statistics import p_beyond


@dataclass(frozen=True)
class Tried:
    """How a rival did on small networks in which a defect was planted: its own, or another one.

    From experiments/results/rival-controls.json, which experiments/rival_controls.py makes.
    """

    planted: str
    hits: int
    n_planted: int
    false_alarms: int
    n_others: int

    def __str__(self) -> str:
        return (
            f"tried on planted defects: found in {self.hits} of {self.n_planted} cases of "
            f"{self.planted}, and in {self.false_alarms} of {self.n_others} cases without that"
        )


TRIED = {
    "H4": Tried("28 of 32 units of a layer dead", 16, 16, 0, 96),
    "H5": Tried("a network that learns slowly under a schedule that freezes", 16, 16, 0, 112),
    "H6": Tried("BatchNorm statistics that lag", 16, 16, 1, 112),
    "H7": Tried("60 training images in place of 1,200", 16, 16, 0, 112),
    "H8": Tried("batches of 2 images in place of 32", 16, 16, 0, 96),
    "H9": Tried("a bottleneck of 1 unit", 16, 16, 0, 112),
}


def rivals(case: Case) -> list[Finding]:
    """Every rival explanation, in the order of their numbers."""
    return [ask(case) for ask in (
        dead_units, frozen_schedule, batchnorm_mismatch, overfitting, gradient_noise, rank_collapse,
    )]  # fmt: skip


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
        Evidence(
            "dead_excess",
            f"the share of dead channels in {case.name} less that in {case.reference_name}, in the "
            "stage where it is largest, at step 90 or else at the end,",
            "", case.pairs(excess), at.DEAD_EXCESS, at.DEAD_EXCESS.value, "above",
        ),
    )  # fmt: skip
    return _finding("H4", "dead units", "Are more channels dead, for every training image?",
                    evidence, "step 90")  # fmt: skip


def frozen_schedule(case: Case) -> Finding:
    """H5: the schedule stops the learning before the slower network has learned."""

    def fallen(mine: TrainedNetwork, theirs: TrainedNetwork) -> float:
        drop = read.fall_of_rate(mine)
        of_reference = at.SLOWER_RATIO.value * read.fall_until(theirs, drop)
        return read.fall_until(mine, drop) - of_reference

    evidence = (
        Evidence(
            "left_to_learn",
            f"what {case.name}'s training loss would have lost, at its pace per unit of learning "
            "rate before the schedule fell by half, with the learning rate that was taken away, "
            f"less {part(at.LEFT_TO_LEARN.value)} of its distance to {case.reference_name} at the "
            "end,",
            "nats", case.pairs(read.left_to_learn), at.LEFT_TO_LEARN, 0.0, "above",
        ),
        Evidence(
            "fallen_until_then",
            f"the fall of the training loss until then, {case.name} less "
            f"{part(at.SLOWER_RATIO.value)} of {case.reference_name}'s,",
            "nats", case.pairs(fallen), at.SLOWER_RATIO, 0.0, "below",
        ),
    )  # fmt: skip
    missing = () if all(one.is_measured for one in evidence) else (
        "the learning rate and the training loss of every step, and a learning rate that falls",
    )  # fmt: skip
    return _finding("H5", "a schedule that freezes learning",
                    "Did the learning rate fall away before the slower network had learned?",
                    evidence, missing=missing)  # fmt: skip


def batchnorm_mismatch(case: Case) -> Finding:
    """H6: BatchNorm's running statistics differ from those of the final weights."""

    def more_than_its_share(mine: TrainedNetwork, theirs: TrainedNetwork) -> float:
        share = at.MODE_SHARE.value * read.gap(mine, theirs, "test")
        return read.mode_mismatch(mine) - share

    evidence = (
        Evidence(
            "mode_share",
            f"what recalibrated BatchNorm statistics take from {case.name}'s test loss, less "
            f"{part(at.MODE_SHARE.value)} of the gap,",
            "nats", case.pairs(more_than_its_share), at.MODE_SHARE, 0.0, "above",
        ),
        Evidence(
            "mode_excess",
            f"what they take from {case.name}'s test loss less what they take from "
            f"{case.reference_name}'s",
            "nats",
            case.pairs(lambda mine, theirs: read.mode_mismatch(mine) - read.mode_mismatch(theirs)),
            at.MODE_EXCESS, at.MODE_EXCESS.value, "above",
        ),
    )  # fmt: skip
    return _of_a_gap(case, "H6", "BatchNorm: training against evaluation",
                     "Does the network only look bad because its BatchNorm statistics lag behind?",
                     evidence, read.batchnorm_modes(case))  # fmt: skip


def overfitting(case: Case) -> Finding:
    """H7: the gap is there on test images and not on training images."""

    def more_than_its_share(mine: TrainedNetwork, theirs: TrainedNetwork) -> float:
        at_test, at_training = (read.gap(mine, theirs, part) for part in ("test", "train"))
        return (at_test - at_training) - at.GENERALISATION_SHARE.value * at_test

    evidence = (
        Evidence(
            "generalisation_share",
            "the part of the gap in test loss that is not there on the training images, under the "
            f"same transform and BatchNorm mode, less {part(at.GENERALISATION_SHARE.value)} of "
            "the gap,",
            "nats", case.pairs(more_than_its_share), at.GENERALISATION_SHARE, 0.0, "above",
        ),
    )  # fmt: skip
    return _of_a_gap(case, "H7", "overfitting",
                     f"Does {case.name} learn the training images and fail to generalise?",
                     evidence, read.decomposition(case))  # fmt: skip


def gradient_noise(case: Case) -> Finding:
    """H8: the gradients of single batches disagree so much that steps are a random walk."""

    def excess(mine: TrainedNetwork, theirs: TrainedNetwork) -> float:
        return read.progress(mine) - at.PROGRESS_RATIO.value * read.progress(theirs)

    evidence = (
        Evidence(
            "progress_to_reference",
            "the part of a noise-free step's progress that a step makes, 1 / (1 + noise scale / "
            f"batch size), {case.name} less {part(at.PROGRESS_RATIO.value)} of "
            f"{case.reference_name}'s,",
            "", case.pairs(excess), at.PROGRESS_RATIO, 0.0, "below",
        ),
    )  # fmt: skip
    return _finding("H8", "gradient noise", "Is an early step mostly the noise of its batch?",
                    evidence, "step 10")  # fmt: skip


def rank_collapse(case: Case) -> Finding:
    """H9: deep features span few directions, and a linear classifier reads less from them."""

    def ratio(mine: TrainedNetwork, theirs: TrainedNetwork) -> float:
        return read.log(read.deep_rank(mine)) - read.log(read.deep_rank(theirs))

    evidence = (
        Evidence(
            "rank_to_reference",
            f"the effective rank of the deepest third of the features at the start, "
            f"{case.name} over {case.reference_name},",
            "×", case.pairs(ratio), at.RANK_RATIO, math.log10(at.RANK_RATIO.value), "below",
        ),
        Evidence(
            "probe_drop",
            f"what a linear classifier loses from {case.name}'s best features to its deepest at "
            "the start",
            "accuracy", case.each(read.probe_drop), at.PROBE_DROP, at.PROBE_DROP.value, "above",
        ),
    )  # fmt: skip
    return _finding("H9", "rank collapse", "Do the features lose information with depth?",
                    evidence, "steps 0 and 10")  # fmt: skip


# -- building ------------------------------------------------------------------------------------


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
    needs_weights = steps is not None and not all(one.is_measured for one in evidence)
    if needs_weights:
        missing = (f"the weights at {steps}",)
    details = (str(TRIED[key]), *more)
    return Finding(
        key, title, question, evidence, *all_of(evidence), missing, details, needs_weights
    )


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
    gaps = case.pairs(lambda mine, theirs: read.gap(mine, theirs, "test"))
    if not found.is_measured or p_beyond(gaps, 0.0, "above") <= at.ALPHA.value:
        return found
    missing = ("a gap in test loss that is surely above zero",)
    return replace(found, p_for=1.0, missing=missing)
