"""Numbers in the running text of further pages are those of the stored results, or of the code."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from zoo import half, trains

from gradflow.analysis.statistics import wilson
from gradflow.controls import expected_growth_bn_relu
from gradflow.examine import trainability as limits
from tests.test_prose import OVERVIEW, PAIRS, ROOT, arm_again, kept, prose, stored
from tests.test_prose_tables import rows, spread, text

CONTROLS = "docs/controls.md"
CONCEPTS = "docs/concepts.md"
NEGATIVE = "docs/negative-results.md"
PHOTOGRAPHS = "studies/photographs-64px"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


# -- the zoo and the gate --------------------------------------------------------------------------


def flagged(optimizer: str, *, trained: bool) -> str:
    """Of the test half, by what one optimizer alone can do."""
    truth, check = stored("zoo-truth"), stored("zoo-check")
    names = [name for name, one in truth.items()
             if half(name) == "test" and trains(one, optimizer) == trained]  # fmt: skip
    n = sum(check[name]["outlook"] in ("doubtful", "unlikely to train") for name in names)
    return f"{n} of {len(names)}"


def of_zoo(name: str) -> str:
    test, given = stored("zoo")["test"], stored("zoo")["set"]
    low, high = (100 * end for end in test["hits"]["interval"])
    hits = f"{test['hits']['n']} of {test['hits']['of']} are flagged"
    alarms = test["false alarms"]
    bounds = " to ".join(f"{100 * end:.1f}" for end in alarms["interval"])
    return {
        "hits": f"{hits}, that is doubtful or unlikely (Wilson's 95 % interval {low:.0f} to "
        f"{high:.0f} %)",
        "alarms": f"{alarms['n']} of {alarms['of']} ({percent(alarms['share'], 1)}, {bounds} %)",
        "set": f"{given['hits']['n']} of {given['hits']['of']} and {given['false alarms']['n']} of "
        f"{given['false alarms']['of']}",
    }[name]


def smallest(split: str) -> str:
    plain = stored("original-study-64px")[split]["networks"][0]
    return f"{plain['grad_norm_first_to_last']['smallest']:.0f}"


def last(split: str, network: int, digits: int = 1) -> str:
    found = stored("original-study-64px")[split]["networks"][network]["last"]["test"]
    return percent(found["accuracy"], digits)


def counts(split: str) -> Any:
    return stored("original-study-64px")[split]["split"]["counts"]


def mcnemar() -> str:
    (one,) = (one for one in stored("original-study-64px")["grouped"]["comparisons"]
              if one["epoch"] == "last")  # fmt: skip
    return (
        f"{one['only_first_right']} against {one['only_second_right']}, exact McNemar test p = "
        f"{one['p_value']:.3f}"
    )


def points(split: str) -> str:
    found = [one["last"]["test"]["accuracy"] for one in
             stored("original-study-64px")[split]["networks"]]  # fmt: skip
    return f"{100 * (found[1] - found[0]):.0f}"


def published(network: int) -> str:
    return percent(
        stored("original-study-64px")["random"]["networks"][network]["published"]["test_accuracy"],
        1,
    )


def arm(study: str, name: str) -> Any:
    (one,) = (one for one in stored(f"studies/{study}")["arms"] if one["name"] == name)
    return one


def moved(name: str) -> str:
    found = arm("digits-8-epochs", name)["equivalent"]["change"]
    low, high = found["interval"]
    return f"{text(found['mean'], '+')}{{}} ({text(low)} to {text(high)})"


def check_of(study: str, name: str, what: str) -> Any:
    (one,) = (one for one in arm(study, name)["checks"]
              if one["network"] == "accused" and one["of"] + one["what"] == what)  # fmt: skip
    return one


def bias_2() -> str:
    one = check_of("digits-8-epochs", "bias-2", "norm_biasλ at the start: growth per layer of the "
                   "squared gradient of the outputs")  # fmt: skip
    return f"{one['measured']:.2f}, below the predicted {one['expected']:.2f}"


def interaction() -> str:
    found = stored("studies/digits-8-epochs")["interaction"]
    low, high = found["interval"]
    return f"{text(found['mean'])}, {text(low)} to {text(high)}"


def gap_of_accuracy() -> str:
    found = stored("studies/photographs-64px-8-epochs")["gap"]["test_accuracy"]
    return spread(found, 3)


def training_gap() -> str:
    verdict = stored("vanishing-verdict-64px-20-epochs")["verdict"]
    found = verdict["gap"]["evidence"][0]
    low, high = found["interval"]
    return f"{found['mean']:.3f} nats worse, {low:.3f} to {high:.3f}"


def per_site() -> str:
    table = (ROOT / "experiments/results/overhead/overhead.md").read_text(encoding="utf-8")
    found = [float(row) for row in re.findall(r"\| ([\d.]+) \([\d. to]+\) \|\n", table)]
    return f"{min(found[-3:]):.0f} to {max(found[-3:]):.0f}"


# -- what was measured -----------------------------------------------------------------------------


def first_over_last(verdict: Any, network: str, size: str) -> float:
    (band,) = (one for one in verdict["profiles"] if (one["network"], one["size"]) ==
               (network, size))  # fmt: skip
    return float(10 ** (band["mean"][0] - band["mean"][-1]))


def photographs(network: str, size: str = "output_gradient") -> float:
    return first_over_last(stored("vanishing-verdict-64px-20-epochs")["verdict"], network, size)


def grown(study: str) -> float:
    """δ of Plain-34 early in training, first layer over last."""
    (one,) = (one for one in stored(f"{study}-verdict")["rates"] if
              (one["network"], one["size"], one["window"]) ==
              ("plain_34", "output_gradient", "early"))  # fmt: skip
    return float(10 ** one["decades"]["mean"])


def evidence(name: str) -> str:
    """Mean and interval, of the run over 20 epochs."""
    verdict = stored("vanishing-verdict-64px-20-epochs")["verdict"]
    (one,) = (one for finding in (*verdict["links"], *verdict["rivals"])
              for one in finding["evidence"] if one["name"] == name)  # fmt: skip
    low, high = one["interval"]
    return f"{one['mean']:.2f} nats ({low:.2f} to {high:.2f})"


def kept_gap(arm: str) -> float:
    """In training loss, the mean over the kept seeds."""
    seeds = [seed for one, seed in PAIRS if one == arm]
    gaps = [
        kept(arm, seed, "accused")["train"]["recalibrated"]["loss"]
        - kept(arm, seed, "reference")["train"]["recalibrated"]["loss"]
        for seed in seeds
    ]
    return sum(gaps) / len(gaps)


def restored_by(arm: str) -> str:
    """The outcome of the vanishing control if this arm is to have restored the gradients."""
    return str(stored("studies/vanishing-control-link-4")[arm]["outcome"])


def vanishing(arm: str) -> Any:
    """Decades from the last to the first layer, by network and size."""
    (one,) = (one for one in stored("studies/vanishing-control")["arms"] if one["name"] == arm)
    return one["decades"]


def s_decades(arm: str) -> str:
    return f"{-vanishing(arm)['accused']['scale_invariant']:.1f} decades"


# Page, the phrase with a hole, and what stands in it.
PHRASES: tuple[tuple[str, str, Callable[[], str]], ...] = (
    (NEGATIVE, "back to their start costs {}, so", lambda: evidence("reset_cost")),
    (NEGATIVE, "first layer over last, it is {} times there",
     lambda: f"{photographs('plain_34'):.1f}"),
    (NEGATIVE, "and {} times in the [run over 30]", lambda: f"{grown(PHOTOGRAPHS):.1f}"),
    (OVERVIEW, "(the gradient is {} times *larger*", lambda: f"{photographs('plain_34'):.1f}"),
    (OVERVIEW, "δ {} times from the last layer",
     lambda: f"{first_over_last(stored('studies/digits-8-epochs-verdict'), 'plain_34', 'output_gradient'):.0f}"),  # noqa: E501
    (OVERVIEW, "The machinery answers **{}**",
     lambda: restored_by("fixed-init")),
    (OVERVIEW, "and the verdict stays **{}**", lambda: restored_by("gradients-up")),
    (OVERVIEW, "link 4 is then **{}**", lambda: restored_by("gradients-given")),
    (OVERVIEW, "ŝ still falls by {} with it", lambda: s_decades("gradients-up")),
    (OVERVIEW, "({} without)", lambda: s_decades("baseline").removesuffix(" decades")),
    (OVERVIEW, "ŝ is as in ResNet-34 ({})",
     lambda: f"+{vanishing('gradients-given')['accused']['scale_invariant']:.2f} decades"),
    (OVERVIEW, "ŝ is as in ResNet-34 ({})",
     lambda: f"+{vanishing('baseline')['reference']['scale_invariant']:.2f} decades"),
    (OVERVIEW, "| early-up: early gradients × 1000 | {} |",
     lambda: arm_again("digits-8-epochs", "early-up")),
    (OVERVIEW, "| bias-1 | **{}** | 1.03", lambda: arm_again("digits-8-epochs", "bias-1")),
    (OVERVIEW, "| constant-lr | **{}** | 0.40",
     lambda: arm_again("digits-8-epochs", "constant-lr")),
    (OVERVIEW, "cosine, {} nats are left",
     lambda: f"{kept_gap('cosine'):.2f} of the gap of {kept_gap('baseline'):.2f}"),
    (OVERVIEW, "found in {} cases of its own",
     lambda: "{hits} of {n_planted}".format(**stored("rival-controls")["rivals"]["H4"])),
    (CONTROLS, "cannot train, {};", lambda: of_zoo("hits")),
    (CONTROLS, "of those that train, {}.", lambda: of_zoo("alarms")),
    (CONTROLS, "the half that set the limits: {}.", lambda: of_zoo("set")),
    (CONTROLS, "{} that do not train with SGD", lambda: flagged("sgd", trained=False)),
    (CONTROLS, "flagged, and {} that do; ", lambda: flagged("sgd", trained=True)),
    (CONTROLS, "{} that do not train with AdamW", lambda: flagged("adamw", trained=False)),
    (CONTROLS, "with AdamW, and {} that do.", lambda: flagged("adamw", trained=True)),
    (CONTROLS, "trains {} networks: 34", lambda: str(len(stored("zoo-truth")))),
    (CONTROLS, "first layer below 10^{}",
     lambda: f"{limits.SHRUNK.value}".replace("-", "−")),
    (CONTROLS, "or above 10^{} times", lambda: f"{limits.GROWN.value:g}"),
    (CONTROLS, "an rms of the output above {}.", lambda: f"{limits.LOUD.value:g}"),
    (CONTROLS, "*unlikely* beyond 10^{},",
     lambda: f"{limits.GONE.value:g} or 10^{math.log10(limits.DEAFENING.value):g}".replace("-", "−")),  # noqa: E501
    (CONTROLS, "μ (d − 2)), which is {} for B = 4, 8, 16, 32, 50, 64, 128 and 512",
     lambda: " and ".join(", ".join(f"{expected_growth_bn_relu(n):.3f}" for n in
                                    (4, 8, 16, 32, 50, 64, 128, 512)).rsplit(", ", 1))),
    (CONTROLS, "and π/(π − 1) = {} for", lambda: f"{math.pi / (math.pi - 1):.3f}"),
    (CONTROLS, "interval {} % to 100 %)", lambda: f"{100 * wilson(80, 80)[0]:.1f}"),
    (CONTROLS, "false alarms 0 % (0 % to {} %)", lambda: f"{100 * wilson(0, 60)[1]:.1f}"),
    (CONCEPTS, "({} in the norm itself)", lambda: f"{math.sqrt(math.pi / (math.pi - 1)):.2f}"),
    (CONCEPTS, "sites: {} µs per site and step", per_site),
    (OVERVIEW, "smallest ratio of Plain-34 in any step is {} (grouped)",
     lambda: f"{smallest('random')} (random) and {smallest('grouped')}"),
    (OVERVIEW, "leaked copies: {} on the same 137 test pictures",
     lambda: f"{last('grouped', 0)} against {last('grouped', 1)}"),
    (OVERVIEW, "other is wrong: {})", mcnemar),
    (OVERVIEW, "In the random split {} have an exact twin",
     lambda: "{contaminated} of {test} test images".format(**counts("random")) + " (58 %)"),
    (OVERVIEW, "training set, {} (68 %) an exact", lambda: str(counts("random")["near_contaminated"])),  # noqa: E501
    (OVERVIEW, "ResNet-34 falls from {},",
     lambda: f"{last('random', 1)} to {last('grouped', 1)}"),
    (OVERVIEW, "Plain-34 from {},", lambda: f"{last('random', 0)} to {last('grouped', 0)}"),
    (OVERVIEW, "the gap between them from {} points",
     lambda: f"{points('random')} to {points('grouped')}"),
    (OVERVIEW, "training images, {},",
     lambda: f"{counts('random')['train']} and {counts('grouped')['train']}"),
    (OVERVIEW, "saw Plain-34 lose ({} test accuracy)",
     lambda: f"{published(0)} against {published(1)}"),
    (OVERVIEW, "Their trainings moved by {} and", lambda: moved("early-up").format("")),
    (OVERVIEW, "and {}: rounding errors",
     lambda: moved("early-down").format(" nats")),
    (OVERVIEW, "(interaction {})", interaction),
    (OVERVIEW, "bias-2 moved λ of Plain-34 to {}", bias_2),
    (OVERVIEW, "in balanced accuracy {}, which", gap_of_accuracy),
    (OVERVIEW, "its training loss is {}.", training_gap),
)  # fmt: skip


@pytest.mark.parametrize(
    ("page", "phrase", "number"), PHRASES, ids=lambda one: one[:40] if isinstance(one, str) else ""
)
def test_a_number_in_running_text(page: str, phrase: str, number: Callable[[], str]) -> None:
    assert phrase.format(number()) in prose(page)


@pytest.mark.parametrize(
    ("row", "way"),
    [
        ("gradflow, every step", "gradflow"),
        ("gradflow, every step, parameters only", "gradflow-parameters"),
        ("gradflow, `cadence=1`: everything at every step", "gradflow-all"),
        ("tutorial code", "tutorial"),
        ('`wandb.watch(log="gradients")`', "wandb-gradients"),
        ("Lightning `grad_norm`", "lightning"),
    ],
)
def test_the_table_of_what_it_costs(row: str, way: str) -> None:
    ratios = stored("overhead-cpu-time/overhead")["ways"]["rows"][way]["all_steps"]
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    (cells,) = (cells for cells in rows(CONCEPTS) if cells[0] == row)
    assert cells[1] == f"{middle:.2f} ({low:.2f} to {high:.2f})"


def test_recording_every_sixteenth_step_costs_a_sixteenth() -> None:
    ratios = stored("overhead-cpu-time/overhead")["ways"]["rows"]["gradflow-all"]["all_steps"]
    (cells,) = (cells for cells in rows(CONCEPTS) if cells[0].startswith("gradflow, every 16th"))
    assert cells[1] == f"{1 + (np.median(ratios) - 1) / 16:.3f}"


def test_the_checks_of_the_network_that_vanishes() -> None:
    study = "vanishing-control"
    left = check_of(study, "fixed-init", "norm_freenorms left")
    variance = check_of(
        study, "fixed-init", "lsuvvariance of the output on the first batch, the furthest from 1"
    )
    rate = check_of(
        study, "constant-lr", "recipelargest relative change of an epoch's learning rate by the arm"
    )
    error = check_of(
        study, "gradients-given",
        "transplantlargest relative error of a gradient norm against the intended one",
    )  # fmt: skip
    factor = check_of(
        study, "gradients-up",
        "gradient_scalegradient norm after over before, geometric mean over layers and steps",
    )  # fmt: skip
    page = prose(OVERVIEW)
    assert f"norms left {left['measured']:g} (0), variance {variance['measured']:.2f} (1)" in page
    assert f"learning rate up to {1 + rate['measured']:g} times as large (10)" in page
    assert f"factor {factor['measured']:.0f} (1000)" in page
    assert f"relative error of a norm {error['measured']:.0e} (0)" in page
