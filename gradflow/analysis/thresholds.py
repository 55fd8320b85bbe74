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
_CHOSEN = "gradflow's own choice"

# -- statistics ----------------------------------------------------------------------------------

CONFIDENCE = Threshold("confidence", 0.95, "1", "of every interval that is printed", "convention")
LEVEL = f"{100 * CONFIDENCE.value:g} %"  # as people read it
N_LOOKS = 3  # at one question: the first, and two more with more seeds
ALPHA = Threshold(
    "alpha", 0.05 / N_LOOKS, "1",
    "of every one-sided test, and of each family of questions after Holm's correction: 5 % shared "
    "by three looks at one question, so that it may be judged again twice with more seeds",
    "Bonferroni's inequality",
)  # fmt: skip
MIN_SEEDS = Threshold(
    "min_seeds", 5, "seeds",
    "fewer describe and decide nothing: two runs of one recipe of the original study differ by "
    "0.07 nats, which is a quarter of its gap; five pairs bring the standard error to a tenth",
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

LOSS_OVERLAP = Threshold(
    "loss_overlap", 0.1, "nats",
    "two networks are compared at equal loss where the losses that both reach span at least this; "
    "with a smaller range one of them has learned nothing, and the ten levels would be noise",
    "twice the spread between runs of one recipe",
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
    "reference network receive at the same loss; smaller differences occur by chance between seeds",
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
    "the first third of the layers must travel, relative to its weights, at most a third as far as "
    "the last third",
    _CHOSEN,
)  # fmt: skip
SHARE_MAIN = Threshold(
    "share_main", 0.5, "share of the gap",
    "what removes more than half of the gap is its main cause",
    _CHOSEN,
)  # fmt: skip
SHARE_CONTRIBUTOR = Threshold(
    "share_contributor", 0.2, "share of the gap",
    "what removes more than a fifth of the gap contributes to it",
    _CHOSEN,
)  # fmt: skip
SHARE_NONE = Threshold(
    "share_none", 0.1, "share of the gap",
    "what surely neither removes nor adds a tenth of the gap is not its cause; between a tenth and "
    "a fifth the answer stays open, so that no share can pass both tests",
    _CHOSEN,
)  # fmt: skip

# -- the instrument ------------------------------------------------------------------------------

HIT_RATE = Threshold(
    "hit_rate", 0.95, "1",
    "19 of 20 control networks must get the right label, otherwise there is no verdict",
    _CHOSEN,
)  # fmt: skip
FALSE_ALARM_RATE = Threshold(
    "false_alarm_rate", 0.05, "1",
    "at most 1 of 20 healthy networks may be called vanishing or exploding, otherwise there is no "
    "verdict",
    "convention",
)  # fmt: skip

# -- the rivals ----------------------------------------------------------------------------------

DEAD_EXCESS = Threshold(
    "dead_excess", 0.10, "share of the channels of a stage",
    "a tenth more dead channels in some stage than in the reference network",
    _CHOSEN,
)  # fmt: skip
LEFT_TO_LEARN = Threshold(
    "left_to_learn", 0.5, "1",
    "at the pace before the schedule fell, the learning rate that it took away would have covered "
    "more than half of the remaining distance to the reference network",
    _CHOSEN,
)  # fmt: skip
SLOWER_RATIO = Threshold(
    "slower_ratio", 1 / 2, "1",
    "when the learning rate falls, the training loss of the accused network must have fallen at "
    "most half as far as that of the reference network",
    f"{_HE}, the conjecture of slow convergence; the ratio is gradflow's own choice",
)  # fmt: skip
MODE_SHARE = Threshold(
    "mode_share", 0.25, "share of the gap",
    "the difference between BatchNorm's running and recalibrated statistics must explain a quarter "
    "of the gap",
    _CHOSEN,
)  # fmt: skip
GENERALISATION_SHARE = Threshold(
    "generalisation_share", 0.5, "share of the gap",
    "more than half of the gap on test images is absent on training images",
    _CHOSEN,
)  # fmt: skip
RANK_RATIO = Threshold(
    "rank_ratio", 1 / 3, "1",
    "the features of the accused network must span at most a third of the directions that those of "
    "the reference network span",
    "Daneshmand et al. 2020, arXiv:2003.01652",
)  # fmt: skip
PROBE_DROP = Threshold(
    "probe_drop", 0.05, "accuracy",
    "a linear classifier must read less from deeper features than from earlier ones; otherwise the "
    "rank fell without a loss of information",
    _CHOSEN,
)  # fmt: skip
PROGRESS_RATIO = Threshold(
    "progress_ratio", 1 / 3, "1",
    "a step of the accused network makes at most a third of the progress, for the noise in its "
    "batch, that one of the reference network makes",
    "McCandlish et al. 2018, arXiv:1812.06162; the ratio is gradflow's own choice",
)  # fmt: skip
MODE_EXCESS = Threshold(
    "mode_excess", 0.0, "nats",
    "the mismatch must be larger in the accused network: what both share explains no gap",
    "sign of a difference",
)  # fmt: skip

THRESHOLDS: dict[str, Threshold] = {
    value.name: value for value in list(globals().values()) if isinstance(value, Threshold)
}
