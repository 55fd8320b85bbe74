"""The numbers of the worked example are those of the photographs' study."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gradflow.analysis.thresholds import ALPHA
from gradflow.studies.arms import PLACES
from gradflow.training.config import TrainConfig
from gradflow.training.schedule import lr_factors
from tests.test_prose import PAIRS, WORKED, kept, prose, stored
from tests.test_prose_tables import rows, spread, text

STUDY = "studies/photographs-64px"


def evaluations(arm: str, place: str) -> list[Any]:
    """After the last epoch, seed by seed."""
    return [kept(arm, seed, place) for one, seed in PAIRS if one == arm]


def over_seeds(values: list[float], digits: int) -> str:
    """Mean and 95 % interval by Student's t."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    mean = float(np.mean(values))
    return spread({"mean": mean, "interval": [mean - half, mean + half]}, digits)


def gaps_in_loss(arm: str) -> list[float]:
    """nats by which Plain-34 is worse after the last epoch, seed by seed."""
    losses = [
        [one["train"]["recalibrated"]["loss"] for one in evaluations(arm, place)]
        for place in ("accused", "reference")
    ]
    return list(np.subtract(*losses))


@cache
def numbers() -> dict[str, str]:
    """What stands in the page, by name."""
    found, verdict = stored(STUDY), stored(f"{STUDY}-verdict")
    baseline, cosine, same_sum, tuned_lr = (
        next(one for one in found["arms"] if one["name"] == name)
        for name in ("baseline", "cosine", "cosine-same-sum", "tuned-lr")
    )
    (open_arms,) = (note.removeprefix("Not trained yet: ").split(", ") for note in found["notes"]
                    if note.startswith("Not trained yet"))  # fmt: skip
    tuned = tuned_lr["shares"]["train_loss"]
    chosen = {
        one["place"]: f"{one['value']:g}" for one in found["tuned"] if one["arm"] == "tuned-lr"
    }
    same, same_accuracy = (same_sum["shares"][name] for name in ("train_loss", "test_accuracy"))
    share, accuracy = (cosine["shares"][name] for name in ("train_loss", "test_accuracy"))
    evidence = {one["name"]: one for part in (*verdict["links"], *verdict["rivals"])
                for one in part["evidence"]}  # fmt: skip
    rates = {(one["network"], one["size"], one["window"]): one for one in verdict["rates"]}
    last = {place: evaluations("baseline", place) for place in ("accused", "reference")}
    learned = {place: [one["train"]["recalibrated"]["accuracy"] for one in last[place]]
               for place in last}  # fmt: skip
    excess = {
        place: [one["train"]["recalibrated"]["accuracy"] - one["test"]["accuracy"]
                for one in last[place]]
        for place in last
    }  # fmt: skip
    gaps = gaps_in_loss("cosine")
    accuracies = [
        [one["test"]["balanced_accuracy"] for one in evaluations("cosine", place)]
        for place in ("accused", "reference")
    ]
    rival = next(one for one in verdict["rivals"] if one["key"] == "H5")
    said = {"yes": "consistent", "no": "inconsistent"}
    gap = found["gap"]
    result = {
        "n_seeds": str(share["n_seeds"]),
        "share": spread(share, 2),
        "status": share["status"],
        "accshare": spread(accuracy, 2),
        "accstatus": accuracy["status"],
        "gain_p": text(share["accused_gain"]["mean"], "+"),
        "gain_r": text(share["reference_gain"]["mean"], "+"),
        "same": spread(same, 2),
        "same_status": same["status"],
        "same_p": text(same["accused_gain"]["mean"], "+"),
        "same_r": text(same["reference_gain"]["mean"], "+"),
        "same_acc": spread(same_accuracy, 2),
        "tuned": spread(tuned, 2),
        "tuned_status": tuned["status"],
        "tuned_p": text(tuned["accused_gain"]["mean"]),
        "tuned_r": text(tuned["reference_gain"]["mean"], "+"),
        "tuned_r_size": text(tuned["reference_gain"]["mean"]),
        "lr_p": chosen["accused"],
        "lr_r": chosen["reference"],
        "n_open": {10: "Ten"}[len(open_arms)],
        "more": over_seeds(list(np.subtract(gaps_in_loss("cosine-same-sum"), gaps)), 2),
        "gap": spread(gap["train_loss"], 3),
        "accgap": spread(gap["test_accuracy"], 3),
        "outcome": verdict["outcome"],
        "lam": f"{rates['plain_34', 'output_gradient', 'start']['growth']:.2f}",
        "adam": f"{evidence['adam_attenuation']['mean']:.3f}",
        "h5": spread(evidence["left_to_learn"], 2),
        "h5_status": said.get(rival["status"], rival["status"]),
        "left": f"{np.mean(gaps):.2f}",
        "accleft": over_seeds(list(np.subtract(*reversed(accuracies))), 3),
        "left_interval": over_seeds(gaps, 2).partition("(")[2].rstrip(")"),
        "over": over_seeds(list(np.subtract(excess["accused"], excess["reference"])), 3),
    }
    recipe = TrainConfig(epochs=30)
    steps, own, same_lr = (
        lr_factors(replace(recipe, schedule=schedule, lr_sum=lr_sum))
        for schedule, lr_sum in (("step", "own"), ("cosine", "own"), ("cosine", "step"))
    )
    wrong = recipe.label_smoothing / 5  # what the smoothed label gives to each of the other four
    right = 1 - 4 * wrong
    floor = -right * math.log(right) - 4 * wrong * math.log(wrong)
    result |= {
        "floor": f"{floor:.3f}",
        "floor_sum": f"−{right:.2f} ln {right:.2f} − 4 · {wrong:.2f} ln {wrong:.2f}",
        "p_alone": f"{share['p_main'] / 10:.4f}",  # the smallest of ten, by Holm
        "p_among": f"{share['p_main']:.3f}",
        "alpha": f"{ALPHA.value:.3f}",
        "sum": f"{sum(own) / sum(steps):.1f}",
        "peak": f"{100 * max(same_lr) / max(steps):.0f} %",
        **{
            f"above_{place[0]}_{name}": f"{one['levels'][place]['train_loss']['mean'] - floor:.3f}"
            for name, one in (("recipe", baseline), ("cosine", cosine))
            for place in ("accused", "reference")
        },
    }
    networks = {"p": ("accused", "plain_34"), "r": ("reference", "resnet_34")}
    for letter, (place, network) in networks.items():
        level = baseline["levels"][place]
        result |= {
            f"loss_{letter}": f"{level['train_loss']['mean']:.3f}",
            f"acc_{letter}": f"{level['test_accuracy']['mean']:.3f}",
            f"tracc_{letter}": f"{np.mean(learned[place]):.3f}",
            f"over_{letter}": f"{np.mean(excess[place]):.3f}",
        }
        for symbol, size in (("delta", "output_gradient"), ("s", "scale_invariant")):
            one = rates[network, size, "early"]["decades"]
            mean, low, high = (10 ** one[end] for end in ("mean", "low", "high"))
            times = f"{mean:.1f} times ({low:.1f} to {high:.1f})"
            result[f"{symbol}_{letter}"] = times
    return result


PHRASES = (
    "falls along a cosine instead, {share} of the gap in training loss is gone",
    "leaves a loss of {floor} nats at the least ({floor_sum})",
    "ends {above_r_recipe} above it under the recipe, and {above_r_cosine} under the cosine; "
    "Plain-34 {above_a_recipe} and {above_a_cosine}",
    "takes more than half of the gap has p = {p_alone} by itself and {p_among} among ten, where "
    "{alpha} is asked for",
    "The cosine has {sum} times the recipe's sum",
    "Its highest rate is then {peak} of the recipe's",
    "mean and range over {n_seeds} seeds",
    "| {loss_p} | {loss_r} | {gap} |",
    "| training accuracy | {tracc_p} | {tracc_r} | |",
    "| balanced test accuracy | {acc_p} | {acc_r} | {accgap} |",
    "| δ early in training, first layer over last | {delta_p} | {delta_r} | |",
    "| ŝ early in training, first layer over last | {s_p} | {s_r} | |",
    "The verdict is *{outcome}*",
    "λ = {lam} per layer",
    "√v̂ / (√v̂ + ε) is {adam}",
    "| {share} | {gain_p} | {gain_r} | {status} |",
    "| {same} | {same_p} | {same_r} | {same_status} |",
    "| {tuned} | {tuned_p} | {tuned_r} | {tuned_status} |",
    "the recipe's own {lr_p} suits Plain-34 best",
    "ResNet-34 does best with {lr_r}, the upper end of the list, and gains {tuned_r_size} nats",
    "test accuracy the cosine takes {accshare}, and the one with the same sum {same_acc}. Both are "
    "{accstatus}",
    "Between the two cosines lie {more} nats of the gap",
    "it would have lost {h5} nats more",
    "(rival H5: {h5_status})",
    "**{n_open} arms are not whole yet**",
    "**{left} nats remain** under the cosine (95 % {left_interval})",
    "less accurate than ResNet-34 by {accleft}, where it was {accgap} under the recipe",
    "is {over_p} in Plain-34 and {over_r} in ResNet-34. The difference is {over}",
    "learning rate alone takes {share} of the gap in training loss away",
)


FRONT = (
    "mean and range over {n_seeds} seeds",
    "under a cosine {share} of the gap in training loss is gone",
)


@pytest.mark.parametrize(
    ("page", "phrase"),
    [*((WORKED, one) for one in PHRASES), *(("README.md", one) for one in FRONT)],
)
def test_a_number_of_the_answer_is_that_of_the_study(page: str, phrase: str) -> None:
    assert phrase.format(**numbers()) in prose(page)


def digits_arms() -> list[Any]:
    arms = stored("studies/digits-30-epochs")["arms"]
    return [pytest.param(arm, id=arm["name"]) for arm in arms if arm["shares"]]


@pytest.mark.parametrize("arm", digits_arms())
def test_the_row_of_an_arm_on_the_digits(arm: Any) -> None:
    ((_, _, compared, *said),) = (
        row for row in rows(WORKED) if row[0] == arm["name"] and " to " not in row[2]
    )
    loss, accuracy = (arm["shares"][name] for name in ("train_loss", "test_accuracy"))
    assert said == [spread(loss), spread(accuracy), loss["status"]]
    levels = {one["name"]: one["levels"] for one in stored("studies/digits-30-epochs")["arms"]}
    accused, reference = (
        levels[arm["against"]][place]["train_loss"]["mean"] for place in ("accused", "reference")
    )
    name = {"baseline": "recipe", "sgd": "SGD"}.get(arm["against"], arm["against"])
    assert compared == f"{name} ({accused - reference:.2f})"


def test_the_numbers_about_the_digits() -> None:
    study = stored("studies/digits-30-epochs")
    arms = {one["name"]: one for one in study["arms"]}
    rates = stored("studies/digits-30-epochs-verdict")["rates"]
    (delta,) = (one["decades"] for one in rates if (one["network"], one["size"], one["window"])
                == ("plain_34", "output_gradient", "early"))  # fmt: skip
    factors = [f"{10 ** delta[end]:.1f}" for end in ("mean", "low", "high")]
    (growth,) = (one["measured"] for one in arms["delta-orthogonal"]["checks"]
                 if one["network"] == "accused" and one["what"].startswith("λ"))  # fmt: skip
    costs = {one["arm"]: spread(one["change"]) for one in study["controls"]}
    scaled = {
        arm: next(one["measured"] for one in arms[arm]["checks"]
                  if one["what"].startswith("gradient norm after over before"))
        for arm in ("sgd-given", "sgd-taken")
    }  # fmt: skip
    damped = [arms[name]["shares"]["train_loss"]["reference_gain"]["mean"]
              for name in ("bias-1", "leaky-0.2")]  # fmt: skip
    said = prose(WORKED)
    for phrase in (
        f"the cosine takes {spread(arms['cosine']['shares']['test_accuracy'])} of it",
        "which is {} times ({} to {}) from the last layer".format(*factors),
        "δ grows by {:.2f} decades in Plain-34 and by {:.2f} in ResNet-34".format(
            *(arms["sgd"]["decades"][place]["output_gradient"] for place in PLACES)
        ),
        f"With those of ResNet-34, {scaled['sgd-given']:.3f} of its own",
        f"with those of Plain-34, {scaled['sgd-taken']:.0f} times its own",
        f"cost Plain-34 {costs['sgd-early-down']} and {costs['sgd-early-up']} nats",
        f"λ is {growth:.2f}",
        f"change ResNet-34 by {max(map(abs, damped)):.2f} nats or less",
    ):
        assert phrase in said
    assert study["gap"]["train_loss"]["n_seeds"] == 10
