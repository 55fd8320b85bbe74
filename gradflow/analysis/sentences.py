"""What a verdict says to people: the answer, the numbers behind it, and what to do next."""

from typing import TYPE_CHECKING

from gradflow.analysis import thresholds as at
from gradflow.analysis.findings import Evidence, enough_seeds
from gradflow.analysis.profile import GRADIENT_SIZES
from gradflow.analysis.statistics import p_beyond, p_equivalent
from gradflow.analysis.vanishing import JUDGED_SIZES, does_not_vanish, early_decades

if TYPE_CHECKING:
    from gradflow.analysis.verdict import Verdict


SURE = (1 - at.CONFIDENCE.value) / 2  # one-sided, so that it goes with the printed interval
# As in `gradflow check`: a person who reads this first has not met the symbols.
SIZE_WORDS = {
    "output_gradient": "the gradient passed on",
    "scale_invariant": "the effect of a weight",
}
GAP_WORDS = {"gap_train_loss": "training loss", "gap_test_accuracy": "test accuracy"}


def sentences(verdict: "Verdict") -> tuple[str, ...]:
    """The answer, the numbers behind it, and what it does not say."""
    return tuple(
        sentence
        for sentence in (_answer(verdict), _numbers(verdict), _gap_sentence(verdict))
        if sentence
    )


def _answer(verdict: "Verdict") -> str:
    case, outcome = verdict.case, verdict.outcome
    name = case.name
    if outcome == "no verdict":
        return (
            "No verdict: on this machine the instrument did not recognise enough of the networks "
            "whose truth is known (`gradflow check --controls` shows which)."
        )
    if outcome == "undetermined" and not enough_seeds(len(case.seeds)):
        n = len(case.seeds)
        return (
            f"Undetermined: {n} {'seed' if n == 1 else 'seeds'} of {name} can be described, but "
            f"nothing can be concluded from fewer than {at.MIN_SEEDS.value:.0f}."
        )
    because = {
        "supported": f"Supported: the gradients of {name} vanish towards the input, and restoring "
        f"them closes {_how_much(verdict)}.",
        "present, not shown causal": f"Present, not shown causal: the gradients of {name} vanish "
        f"towards the input; whether that causes anything is open{_learned(verdict)}.",
        "present but not causal": f"Present but not causal: the gradients of {name} vanish towards "
        f"the input, but {_broken_link(verdict)}.",
        "matters only under SGD": f"Matters only under SGD: the gradients of {name} vanish towards "
        f"the input, and restoring them lowers the training loss under SGD "
        f"({verdict.size.helps_sgd}), but not in this experiment.",
        "refuted": _refuted(verdict),
        "exploding instead": f"Refuted: the gradients of {name} do not vanish towards the input; "
        "they grow.",
        "nothing to explain": f"Nothing to explain: {name} does no worse than "
        f"{case.reference_name}.",
        "undetermined": _undetermined(verdict),
    }
    return because[outcome]


def _refuted(verdict: "Verdict") -> str:
    name = verdict.case.name
    if does_not_vanish(verdict.case):
        return f"Refuted: the gradients of {name} do not vanish towards the input."
    return (
        f"Refuted: whether the gradients of {name} vanish is open, but their size changes nothing "
        f"here. Its {_stays(verdict)}, while a positive control reacts."
    )


def _stays(verdict: "Verdict") -> str:
    arms = " and ".join(verdict.size.changes_nothing)
    return f"training loss stays within {at.LOSS_MARGIN.value:g} nats in {arms}"


def _undetermined(verdict: "Verdict") -> str:
    name, status = verdict.case.name, verdict.links[0].status
    if status == "yes":
        return (
            "Undetermined: the evidence conflicts. Restoring the gradients closes the gap, and yet "
            f"the early layers of {name} move as far as others."
        )
    if status == "no":
        return (
            f"Undetermined: the gradients of {name} may shrink towards the input, but its early "
            "layers receive no less than a third of what those of "
            f"{verdict.case.reference_name} do."
        )
    return (
        f"Undetermined: whether the gradients of {name} vanish cannot be told from "
        f"{len(verdict.case.seeds)} seeds."
    )


def _learned(verdict: "Verdict") -> str:
    return ", though the early layers did learn" if verdict.links[2].status == "no" else ""


def _how_much(verdict: "Verdict") -> str:
    found = verdict.links[3].evidence
    share = found[0].values if found else ()
    is_main = p_beyond(share, at.SHARE_MAIN.value, "above") <= (1 - at.CONFIDENCE.value) / 2
    return (
        "more than half of the gap: they are its main cause"
        if is_main
        else "a part of the gap: they contribute to it"
    )


def _broken_link(verdict: "Verdict") -> str:
    if verdict.links[0].status == "no":
        return (
            "its early layers receive no less than a third of what those of "
            f"{verdict.case.reference_name} do"
        )
    if verdict.links[3].status == "no":
        return "restoring them does not close the gap"
    if verdict.size.changes_nothing:
        return f"their size changes nothing: the {_stays(verdict)}"
    return "that does not reach the weights: the early layers move far enough"


def _numbers(verdict: "Verdict") -> str:
    parts = []
    for size in JUDGED_SIZES:
        found = early_decades(verdict.case, size)
        if found.n:
            factor = 10 ** abs(found.mean)
            change = "larger" if found.mean > 0 else "smaller"
            spread = f" (95 % {found.low:+.2f} to {found.high:+.2f})" if found.n > 1 else ""
            what = f"{SIZE_WORDS[size]} ({GRADIENT_SIZES[size].symbol})"
            parts.append(
                f"{what} is {factor:.3g} times {change} at the first layer than at the last, "
                f"{found.mean:+.2f} decades{spread}"
            )
    if not parts:
        return ""
    return f"Early in training, {'; '.join(parts)}. Vanishing would be below -1 decade."


def _gap_sentence(verdict: "Verdict") -> str:
    case = verdict.case
    if not case.reference:
        return "There is no reference network, so nothing is said of a gap."
    if not verdict.gap:
        return "How well the networks do was not given, so nothing is said of a gap."
    numbers = [_worse_by(one) for one in verdict.gap]
    state = {
        "yes": "There is a gap to explain",
        "no": "There is no gap beyond the margins of 0.05 nats and 0.05",
        "undetermined": "Whether there is a gap is open",
        "not measured": "The gap was not measured",
    }[verdict.gap_status]
    if is_discordant(verdict):
        state = "The two measures of a gap disagree"
    elif lacks_seeds(verdict):
        state = f"There seems to be a gap (a claim needs {at.EFFECT_SEEDS.value:.0f} seeds)"
    return f"{state}: {case.name} is {' and '.join(numbers)} than {case.reference_name}."


def is_discordant(verdict: "Verdict") -> bool:
    """Whether one outcome is surely worse, and the other surely not, beyond the margin."""
    worse = [one.p_for <= SURE for one in verdict.gap]
    equal = [
        p_equivalent(one.values, one.threshold.value) <= 1 - at.CONFIDENCE.value
        or one.p_against <= SURE
        for one in verdict.gap
    ]
    return any(worse) and any(b and not a for a, b in zip(worse, equal, strict=True))


def lacks_seeds(verdict: "Verdict") -> bool:
    """Whether there would be a gap by its intervals, over too few seeds to claim one."""
    return verdict.gap_status == "undetermined" and all(
        one.p_for <= SURE and one.interval.n < at.EFFECT_SEEDS.value for one in verdict.gap
    )


def _worse_by(gap: Evidence) -> str:
    found, words = gap.interval, GAP_WORDS[gap.name]
    unit = f" {gap.unit}" if gap.unit else ""
    ends = (found.low, found.high) if found.mean >= 0 else (-found.high, -found.low)
    spread = f" (95 % {ends[0]:+.3f} to {ends[1]:+.3f})" if found.n > 1 else ""
    direction = "worse" if found.mean >= 0 else "better"
    return f"{direction} by {abs(found.mean):.3f}{unit}{spread} in {words}"


def next_steps(verdict: "Verdict") -> tuple[str, ...]:
    """What to do now, the most telling first."""
    steps: list[str] = []
    case = verdict.case
    if verdict.outcome == "no verdict":
        return ("Run `gradflow check --controls` and report what fails.",)
    if not enough_seeds(len(case.seeds)):
        steps.append(
            f"Train {at.EFFECT_SEEDS.value:.0f} seeds (`gradflow train --seeds "
            f"{at.EFFECT_SEEDS.value:.0f} --log-grads`): fewer than "
            f"{at.MIN_SEEDS.value:.0f} prove nothing."
        )
    elif verdict.links[0].status == "undetermined" and verdict.outcome != "refuted":
        steps.append(_more_seeds(verdict))
    elif verdict.gap_status == "undetermined" and not is_discordant(verdict):
        steps.append(_seeds_for_the_gap(verdict))
    if verdict.links[0].status == "yes" and verdict.links[3].status == "not measured":
        steps.append(
            "Change the gradients on purpose (`gradflow study`, docs/studies.md): only if the gap "
            "closes are they the cause."
        )
    for rival in verdict.rivals:
        if rival.status == "yes":
            steps.append(
                f"Look into {rival.title} ({rival.key}): the data are consistent with it. Change "
                "it on purpose to see whether the gap closes."
            )
    unmeasured = [
        rival.key for rival in verdict.rivals if any("--measure" in need for need in rival.missing)
    ]
    if unmeasured:
        steps.append(
            f"Not fully measured: {', '.join(unmeasured)}. Where the weights were kept, `gradflow "
            "diagnose RUN --measure` does; else train again with a larger --checkpoint-budget, for "
            "more than 91 steps."
        )
    return tuple(steps)


def _seeds_for_the_gap(verdict: "Verdict") -> str:
    if lacks_seeds(verdict):
        return f"Train {at.EFFECT_SEEDS.value:.0f} seeds: a gap is claimed from no fewer."
    return "Train more seeds: whether there is a gap cannot be told from these."


def _more_seeds(verdict: "Verdict") -> str:
    needed = verdict.links[0].seeds_needed
    if needed is None:
        return "Train more seeds: what is open cannot be told from these."
    return (
        f"Train about {max(needed, len(verdict.case.seeds) + 1)} seeds: with the mean and the "
        "spread seen so far they decide about four times in five."
    )
