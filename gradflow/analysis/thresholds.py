"""Thresholds: every number at which a verdict turns, with its unit, reason and source.

A test stands on both sides of each. docs/worked-example.md says which were set before the runs that
it judges.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Threshold:
    """A number at which an answer turns."""

    name: str
    value: float
    unit: str
    reason: str
    source: str

    def __float__(self) -> float:
        return float(self.value)


_HE = "He et al. 2015, arXiv:1512.03385"
_YANG = "Yang et al. 2019, arXiv:1902.08129"
_CHOSEN = "gradflow's own choice"

# -- statistics ----------------------------------------------------------------------------------

CONFIDENCE = Threshold(
    "confidence", 0.95, "1",
    "of every interval, and of each family of hypotheses after Holm's correction",
    "convention",
)  # fmt: skip
MIN_SEEDS = Threshold(
    "min_seeds", 3, "seeds",
    "with two the t interval has one degree of freedom and is 12.7 standard errors wide either "
    "way: it could decide nothing",
    "Student's t distribution",
)  # fmt: skip
EFFECT_SEEDS = Threshold(
    "effect_seeds", 5, "seeds",
    "two runs of one recipe of the original study differ by 0.07 nats, which is a quarter of its "
    "gap; five pairs bring the standard error to a tenth",
    _CHOSEN,
)  # fmt: skip
LOSS_MARGIN = Threshold(
    "loss_margin", 0.05, "nats",
    "the spread between runs of one recipe (0.07 nats between two runs, standard deviation "
    "0.05): a smaller difference cannot be told from the luck of a seed",
    "the original study's two runs of Plain-34",
)  # fmt: skip
ACCURACY_MARGIN = Threshold(
    "accuracy_margin", 0.05, "1",
    "the binomial standard error of an accuracy on 222 images is 0.033: a smaller difference "
    "would not be seen in the original study",
    "the original study's test set",
)  # fmt: skip

# -- does it vanish? -----------------------------------------------------------------------------

VANISHING_DECADES = Threshold(
    "vanishing_decades", 1.0, "decades over the depth",
    "a gradient that is ten times smaller at the first layer than at the last; below that, layers "
    "of a well-trained network differ as much from each other. 0.03 decades per layer at depth 34",
    _CHOSEN,
)  # fmt: skip
REFERENCE_FACTOR = Threshold(
    "reference_factor", 3.0, "1",
    "the early layers of the accused network must receive at most a third of what those of the "
    "reference network receive at the same loss; below that the luck of a seed is as large",
    _CHOSEN,
)  # fmt: skip
ATTENUATION = Threshold(
    "attenuation", 0.9, "1",
    "Adam divides by √v̂ + ε: where the mean of √v̂ / (√v̂ + ε) stays above 0.9, ε takes less than a "
    "tenth of the step, and the size of the gradient cannot reach the weights",
    "Wortsman et al. 2023, arXiv:2309.14322",
)  # fmt: skip
MOVEMENT_RATIO = Threshold(
    "movement_ratio", 1 / 3, "1",
    "the first third of the layers must turn, relative to its size, at most a third as far as the "
    "last third, and as the same layers of the reference network",
    _CHOSEN,
)  # fmt: skip
SHARE_MAIN = Threshold(
    "share_main", 0.5, "share of the gap",
    "what removes more than half of the gap is its main cause",
    _CHOSEN,
)  # fmt: skip
SHARE_CONTRIBUTOR = Threshold(
    "share_contributor", 0.1, "share of the gap",
    "what removes more than a tenth of the gap contributes to it",
    _CHOSEN,
)  # fmt: skip
SHARE_NONE = Threshold(
    "share_none", 0.2, "share of the gap",
    "what surely neither removes nor adds a fifth of the gap is not its cause",
    _CHOSEN,
)  # fmt: skip

# -- the instrument ------------------------------------------------------------------------------

HIT_RATE = Threshold(
    "hit_rate", 0.95, "1",
    "19 of 20 networks whose truth is known must get the right label, else there is no verdict",
    _CHOSEN,
)  # fmt: skip
FALSE_ALARM_RATE = Threshold(
    "false_alarm_rate", 0.05, "1",
    "at most 1 of 20 healthy networks may be called vanishing or exploding, else there is no "
    "verdict",
    "convention",
)  # fmt: skip

# -- the rivals ----------------------------------------------------------------------------------

START_EXCESS = Threshold(
    "start_excess", 0.0, "decades",
    "the gradients must grow more than in the reference network: what both share explains no gap",
    "sign of a difference",
)  # fmt: skip
EXPLODING_SHARE = Threshold(
    "exploding_share", 0.8, "share of the first-order change of the loss",
    "with an explosion towards the input the first third of the layers makes most of the step",
    _YANG,
)  # fmt: skip
LINEARITY = Threshold(
    "linearity", 0.5, "1",
    "a step that brings less than half of the fall that the gradient promises has left the region "
    "where the gradient speaks for the loss",
    "the Armijo rule's usual constant is far smaller; gradflow's own choice",
)  # fmt: skip
SHATTERED_RATIO = Threshold(
    "shattered_ratio", 1 / 3, "1",
    "the input gradient of the accused network must lose its direction within a third of the way "
    "that the reference network's takes",
    "Balduzzi et al. 2017, arXiv:1702.08591",
)  # fmt: skip
DEAD_EXCESS = Threshold(
    "dead_excess", 0.10, "share of the channels of a stage",
    "a tenth more dead channels in some stage than in the reference network",
    _CHOSEN,
)  # fmt: skip
FROZEN_FRACTION = Threshold(
    "frozen_fraction", 0.5, "share of the weights",
    "where a step changes the bits of fewer than half of the weights, the learning rate has come "
    "to the end of float32 and training stands still",
    "float32 has 24 bits: half a unit in the last place of 0.03 is 1e-9",
)  # fmt: skip
MODE_SHARE = Threshold(
    "mode_share", 0.25, "share of the gap",
    "the difference between BatchNorm's running and recalibrated statistics must explain a quarter "
    "of the gap",
    _CHOSEN,
)  # fmt: skip
GENERALISATION_SHARE = Threshold(
    "generalisation_share", 0.5, "share of the gap",
    "more than half of the gap on test images is not there on training images",
    _CHOSEN,
)  # fmt: skip
NOISE_UPDATE_RMS = Threshold(
    "noise_update_rms", 0.38, "1",
    "Adam's rms step is √((1 − β₁)/(1 + β₁)) = 0.229 for pure noise and 1 for pure signal; in its "
    "square 0.38 is a tenth of the way",
    "closed form for independent gradients, β₁ = 0.9",
)  # fmt: skip
RANK_RATIO = Threshold(
    "rank_ratio", 1 / 3, "1",
    "the features of the accused network must span at most a third of the directions that those of "
    "the reference network span",
    "Daneshmand et al. 2020, arXiv:2003.01652",
)  # fmt: skip
PROBE_DROP = Threshold(
    "probe_drop", 0.05, "accuracy",
    "a linear classifier must read less from deeper features than from earlier ones: else the rank "
    "fell without a loss of what matters",
    _CHOSEN,
)  # fmt: skip
STILL_FALLING = Threshold(
    "still_falling", 0.0, "nats per step",
    "the training loss must still have been falling when the learning rate first dropped: else "
    "there was nothing for the schedule to cut off",
    "sign of the slope",
)  # fmt: skip
SLOWER_RATIO = Threshold(
    "slower_ratio", 1 / 2, "1",
    "when the learning rate first drops, the training loss of the accused network must have fallen "
    "at most half as far as that of the reference network",
    f"{_HE}, the conjecture of slow convergence; the ratio is gradflow's own choice",
)  # fmt: skip
MODE_EXCESS = Threshold(
    "mode_excess", 0.0, "nats",
    "the mismatch must be larger in the accused network: what both share explains no gap",
    "sign of a difference",
)  # fmt: skip
NOISE_EXCESS = Threshold(
    "noise_excess", 0.0, "1",
    "the accused network's steps must hold less signal than the reference network's: what both "
    "share explains no gap",
    "sign of a difference",
)  # fmt: skip
LINEARITY_GAP = Threshold(
    "linearity_gap", 0.2, "1",
    "the accused network's steps must keep at least a fifth less of their promise than the "
    "reference network's",
    _CHOSEN,
)  # fmt: skip

THRESHOLDS: dict[str, Threshold] = {
    value.name: value for value in list(globals().values()) if isinstance(value, Threshold)
}
