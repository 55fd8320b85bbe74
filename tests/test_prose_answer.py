"""The numbers of the worked example are those of the photographs' study."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gradflow.analysis.thresholds import ALPHA
from gradflow.studies import Study
from gradflow.studies.arms import PLACES
from gradflow.training.config import TrainConfig
from gradflow.training.schedule import lr_factors
from tests.test_prose import DIGITS, PAIRS, ROOT, WORKED, kept, prose, stored
from tests.test_prose_tables import rows, spread, text

STUDY = "studies/photographs-64px"
FILE = ROOT / "experiments" / "studies" / "photographs-64px.yaml"


def evaluations(arm: str, place: str) -> list[Any]:
    """After the last epoch, seed by seed."""
    return [kept(arm, seed, place) for one, seed in PAIRS if one == arm]


def over_seeds(values: list[float], digits: int) -> str:
    """Mean and 95 % interval by Student's t."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    mean = float(np.mean(values))
    return spread({"mean": mean, "interval": [mean - half, mean + half]}, digits)


def trial_gap(rate: str) -> float:
    """nats of training loss by which Plain-34 is worse in the trials of tuned-lr with this rate."""
    accused, reference = (
        kept("tuned-lr", f"lr-{rate}", place)["train"]["recalibrated"]["loss"] for place in PLACES
    )
    return float(accused - reference)


def growth(arm: Any) -> str:
    """λ of Plain-34 at the start, as the check of an intervention measured it."""
    (found,) = (one["measured"] for one in arm["checks"]
                if one["network"] == "accused" and one["what"].startswith("λ"))  # fmt: skip
    return f"{found:.2f}"


def arm_row(key: str, share: Any) -> dict[str, str]:
    """What the table of the answer has of an arm."""
    return {
        key: spread(share),
        f"{key}_p": text(share["accused_gain"]["mean"], "+"),
        f"{key}_r": text(share["reference_gain"]["mean"], "+"),
        f"{key}_status": share["status"],
    }


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
    names = ("baseline", "cosine", "cosine-same-sum", "tuned-lr", "warmup", "lr-0.001", "bias-1")
    baseline, cosine, same_sum, tuned_lr, warmup, larger_lr, bias_1 = (
        next(one for one in found["arms"] if one["name"] == name) for name in names
    )
    n_causes = sum(arm.role == "cause" for arm in Study.load(FILE, {}).arms)
    (open_arms,) = (note.removeprefix("Not trained yet: ").split(", ") for note in found["notes"]
                    if note.startswith("Not trained yet"))  # fmt: skip
    tuned, warm, larger, bias = (
        one["shares"]["train_loss"] for one in (tuned_lr, warmup, larger_lr, bias_1)
    )
    chosen = {
        one["place"]: f"{one['value']:g}" for one in found["tuned"] if one["arm"] == "tuned-lr"
    }
    same, same_accuracy = (same_sum["shares"][name] for name in ("train_loss", "test_accuracy"))
    share, accuracy = (cosine["shares"][name] for name in ("train_loss", "test_accuracy"))
    evidence = {one["name"]: one for part in (*verdict["links"], *verdict["rivals"])
                for one in part["evidence"]}  # fmt: skip
    nearby = evidence["output_gradient_to_reference"]
    rates = {(one["network"], one["size"], one["window"]): one for one in verdict["rates"]}
    at_start = rates["plain_34", "output_gradient", "start"]
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
        **arm_row("same", same),
        "same_acc": spread(same_accuracy, 2),
        "tuned": spread(tuned, 2),
        "tuned_status": tuned["status"],
        "tuned_p": text(tuned["accused_gain"]["mean"]),
        "tuned_r": text(tuned["reference_gain"]["mean"], "+"),
        "tuned_r_size": text(tuned["reference_gain"]["mean"]),
        **arm_row("warm", warm),
        "warm_gain": spread(warm["accused_gain"]),
        **arm_row("larger", larger),
        "larger_seeds": f"{min(larger['per_seed']):.2f} to {max(larger['per_seed']):.2f}",
        **arm_row("bias", bias),
        "bias_gain": spread(bias["accused_gain"]),
        "bias_cost_r": text(-bias["reference_gain"]["mean"]),
        "bias_lam": growth(bias_1),
        "lr_p": chosen["accused"],
        "lr_r": chosen["reference"],
        "n_open": {8: "Eight"}[len(open_arms)],
        "trial_larger": f"{trial_gap('0.001'):.2f}",
        "trial_own": f"{trial_gap('0.0006'):.2f}",
        "more": over_seeds(list(np.subtract(gaps_in_loss("cosine-same-sum"), gaps)), 2),
        "gap": spread(gap["train_loss"], 3),
        "accgap": spread(gap["test_accuracy"], 3),
        "outcome": verdict["outcome"],
        "lam": f"{at_start['growth']:.2f}",
        "lam_times": f"{10 ** at_start['decades']['mean']:.0f}",
        "adam": f"{evidence['adam_attenuation']['mean']:.3f}",
        "equal_loss": "{:.1f} times ({:.1f} to {:.1f})".format(
            *(10**one for one in (nearby["mean"], *nearby["interval"])),
        ),
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
        "p_alone": f"{share['p_main'] / n_causes:.4f}",  # the smallest of them, by Holm
        "n_causes": {11: "eleven"}[n_causes],
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
    "falls along a cosine instead, with the same network and data, {share} of the gap in training "
    "loss is gone",
    "leaves a loss of {floor} nats at the least ({floor_sum})",
    "ends {above_r_recipe} above it under the recipe, and {above_r_cosine} under the cosine; "
    "Plain-34 {above_a_recipe} and {above_a_cosine}",
    "takes more than half of the gap has p = {p_alone}, where {alpha} is asked for",
    "the study file names {n_causes} possible causes",
    "so that p counts {n_causes} times: {p_among}",
    "labels count all {n_causes} possible causes",
    "The cosine has {sum} times the recipe's sum",
    "It starts at {peak} of the recipe's rate",
    "mean and range over {n_seeds} seeds",
    "| {loss_p} | {loss_r} | {gap} |",
    "| training accuracy | {tracc_p} | {tracc_r} | |",
    "| balanced test accuracy | {acc_p} | {acc_r} | {accgap} |",
    "| δ early in training, first layer over last | {delta_p} | {delta_r} | |",
    "| ŝ early in training, first layer over last | {s_p} | {s_r} | |",
    "The verdict is *{outcome}*",
    "the *square* of δ grows by λ = {lam} per layer in Plain-34, so that δ is {lam_times} times as",
    "√v̂ / (√v̂ + ε) is {adam}",
    "| {share} | {gain_p} | {gain_r} | {status} |",
    "| {same} | {same_p} | {same_r} | {same_status} |",
    "| {tuned} | {tuned_p} | {tuned_r} | {tuned_status} |",
    "| {warm} | {warm_p} | {warm_r} | {warm_status} |",
    "Plain-34 gains {warm_gain} nats, and",
    "(λ at the start {bias_lam}, where the recipe has {lam}) | {bias} | {bias_p} | {bias_r} | "
    "{bias_status} |",
    "Plain-34 gains {bias_gain} nats: it learns no better",
    "ResNet-34 gets worse too, by {bias_cost_r}",
    "| {larger} | {larger_p} | {larger_r} | {larger_status} |",
    "It takes {larger_seeds} of the gap, seed by seed, and the mean is {larger_status}",
    "validation loss: {lr_p} for Plain-34, as in the recipe, and {lr_r} for ResNet-34 |",
    "The recipe's own {lr_p} won for Plain-34",
    "ResNet-34 did best with {lr_r}, the upper end of the list, and gains {tuned_r_size} nats",
    "it left {trial_larger} nats between them, the recipe {trial_own}",
    "test accuracy the cosine takes {accshare}, and the one with the same sum {same_acc}. Both are "
    "{accstatus}",
    "The full cosine takes {more} nats more",
    "(rival H5, a schedule that freezes learning: {h5_status})",
    "the first third of the layers is {equal_loss} that of ResNet-34",
    "**{n_open} arms are not whole yet**",
    "Under the cosine the gap is {left} nats (95 % {left_interval})",
    "less accurate than ResNet-34 by {accleft}, where it was {accgap} under the recipe",
    "is {over_p} in Plain-34 and {over_r} in ResNet-34. The difference is {over}",
    "learning rate's schedule alone takes {share} of the gap in training loss away",
)


NEGATIVE = (
    "(λ {bias_lam} at the start) and {bias} of the gap: {bias_status}",
    "0.001 for both networks takes {larger} of the gap, and three epochs of warm-up {warm} of what",
    "Among the {n_causes} of the study file it is a {status} so far",
)

FRONT = (
    "mean and range over {n_seeds} seeds",
    "under a cosine {share} of the gap in training loss is gone",
)


@pytest.mark.parametrize(
    ("page", "phrase"),
    [
        *((WORKED, one) for one in PHRASES),
        *(("README.md", one) for one in FRONT),
        *(("docs/negative-results.md", one) for one in NEGATIVE),
    ],
)
def test_a_number_of_the_answer_is_that_of_the_study(page: str, phrase: str) -> None:
    assert phrase.format(**numbers()) in prose(page)


def digits_arms() -> list[Any]:
    arms = stored("studies/digits-30-epochs")["arms"]
    return [pytest.param(arm, id=arm["name"]) for arm in arms if arm["shares"]]


@pytest.mark.parametrize("arm", digits_arms())
def test_the_row_of_an_arm_on_the_digits(arm: Any) -> None:
    ((_, _, compared, *said),) = (row for row in rows(DIGITS) if row[0] == arm["name"])
    loss, accuracy = (arm["shares"][name] for name in ("train_loss", "test_accuracy"))
    assert said == [spread(loss), spread(accuracy), loss["status"]]
    levels = {one["name"]: one["levels"] for one in stored("studies/digits-30-epochs")["arms"]}
    accused, reference = (
        levels[arm["against"]][place]["train_loss"]["mean"] for place in ("accused", "reference")
    )
    name = {"baseline": "recipe", "sgd": "SGD"}.get(arm["against"], arm["against"])
    assert compared == f"{name} ({accused - reference:.2f})"


@pytest.mark.parametrize(
    ("phrase", "names"),
    [
        ("The cosine takes {} of the gap there too", ["cosine"]),
        ("bias of 1 takes {} and leaky activations {}:", ["bias-1", "leaky-0.2"]),
        ("skips of a quarter of their strength shows {} of the gap", ["skip-0.25"]),
    ],
)
def test_the_answer_in_short_on_the_digits(phrase: str, names: list[str]) -> None:
    arms = {one["name"]: one for one in stored("studies/digits-30-epochs")["arms"]}
    shares = [spread(arms[name]["shares"]["train_loss"]) for name in names]
    assert phrase.format(*shares) in prose(WORKED)


def test_the_numbers_about_the_digits() -> None:
    study = stored("studies/digits-30-epochs")
    arms = {one["name"]: one for one in study["arms"]}
    rates = stored("studies/digits-30-epochs-verdict")["rates"]
    (delta,) = (one["decades"] for one in rates if (one["network"], one["size"], one["window"])
                == ("plain_34", "output_gradient", "early"))  # fmt: skip
    factors = [f"{10 ** delta[end]:.1f}" for end in ("mean", "low", "high")]
    costs = {one["arm"]: spread(one["change"]) for one in study["controls"]}
    scaled = {
        arm: next(one["measured"] for one in arms[arm]["checks"]
                  if one["what"].startswith("gradient norm after over before"))
        for arm in ("sgd-given", "sgd-taken")
    }  # fmt: skip
    taken = -arms["sgd-taken"]["shares"]["train_loss"]["reference_gain"]["mean"]
    damped = [arms[name]["shares"]["train_loss"]["reference_gain"]["mean"]
              for name in ("bias-1", "leaky-0.2")]  # fmt: skip
    said = prose(DIGITS)
    for phrase in (
        f"the cosine takes {spread(arms['cosine']['shares']['test_accuracy'])} of it",
        "which is {} times ({} to {}) from the last layer".format(*factors),
        "ŝ grows by {:.2f} decades in Plain-34 and by {:.2f} in ResNet-34".format(
            *(arms["sgd"]["decades"][place]["scale_invariant"] for place in PLACES)
        ),
        f"gets gradients of {scaled['sgd-given']:.3f} of its own",
        f"with those of Plain-34, {scaled['sgd-taken']:.0f} times its own, loses {taken:.2f} nats",
        f"(λ at the start {growth(arms['bias-1'])}, where",
        f"leaky activations of slope 0.2 (λ {growth(arms['leaky-0.2'])})",
        f"cost Plain-34 {costs['sgd-early-down']} and {costs['sgd-early-up']} nats",
        f"λ is {growth(arms['delta-orthogonal'])}",
        f"change ResNet-34 by {max(map(abs, damped)):.2f} nats or less",
    ):
        assert phrase in said
    assert study["gap"]["train_loss"]["n_seeds"] == 10
