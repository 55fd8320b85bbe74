"""What a verdict says to people: the answer, the numbers behind it, and what to do next."""

import math
from typing import TYPE_CHECKING

from gradflow.analysis import thresholds as at
from gradflow.analysis.case import Case, Source
from gradflow.analysis.findings import Evidence
from gradflow.analysis.network import TrainedNetwork
from gradflow.analysis.numerals import part, times
from gradflow.analysis.profile import GRADIENT_SIZES
from gradflow.analysis.shares import gap_status
from gradflow.analysis.statistics import POWER, enough_seeds, p_beyond
from gradflow.analysis.vanishing import (
    JUDGED_SIZES,
    directions,
    early_decades,
    n_cut_off,
    sizes_that_go,
)

if TYPE_CHECKING:
    from gradflow.analysis.verdict import Verdict


# As in `gradflow check`: a person who reads this first has not met the symbols.
SIZE_WORDS = {
    "output_gradient": "the gradient passed on",
    "scale_invariant": "the effect of a weight",
}
GAP_WORDS = {"gap_train_loss": "training loss", "gap_test_accuracy": "test accuracy"}
SEEDS = f"{at.MIN_SEEDS.value:g}"
# How to have more seeds, by where the records come from.
MORE_SEEDS: dict[Source, str] = {
    "traces": "run your loop once for each, with a Recorder, and give one trace per seed",
    "records": "run your loop once for each, with a Recorder, and name its folders by network and "
    "seed, plain-s0, plain-s1 and so on",
    "training": "`gradflow train --seeds {n} --log-grads`",
    "study": "`seeds: {n}` in the study's file",
}
# How to change the gradients and have the answer judged.
_IN_A_LOOP = " in your loop, and give `gradflow.judge` the `gap_shares` that went away"
RESTORE: dict[Source, str] = {
    "traces": _IN_A_LOOP,
    "records": _IN_A_LOOP,
    "training": " (`gradflow study`, docs/studies.md)",
    "study": " (an arm that `restores` names in the study's file)",
}
# How to have a gap that could be explained; a study has one.
_OF_TWO = "Give `gradflow.judge` the traces of two networks and the `losses` of both"
COMPARE: dict[Source, str] = {
    "traces": _OF_TWO,
    "records": _OF_TWO,
    "training": "Train the other network beside it, `gradflow train --arch both --log-grads`",
}
MEASURE: dict[Source, str] = {
    "traces": "they need the weights and images of a `gradflow train`",
    "records": "they need the weights and images of a `gradflow train`",
    "training": "where the weights were kept, `gradflow diagnose RUN --measure` does; else train "
    "again with a larger --checkpoint-budget",
    "study": "where the weights were kept, `gradflow diagnose STUDY --measure` does",
}


def sentences(verdict: "Verdict") -> tuple[str, ...]:
    """The answer, the numbers behind it, and what it does not say."""
    return tuple(filter(None, (_answer(verdict), _numbers(verdict), _gap_sentence(verdict))))


def _answer(verdict: "Verdict") -> str:
    case, outcome = verdict.case, verdict.outcome
    shrink = f"the gradients of {case.name} vanish towards the input"
    if outcome == "undetermined":
        return f"Undetermined: {undetermined(verdict)}."
    because = {
        "no verdict": "on this machine the instrument did not recognise enough of the networks "
        "whose truth is known (`gradflow check --controls` shows which)",
        "supported": f"{shrink}, and restoring them closes {_how_much(verdict)}",
        "supported for signal and gradient": f"{shrink}, and what restores the signal on its way "
        f"forward and the gradient on its way back closes {_how_much(verdict)}. Which of the two "
        "it was, only a change of the gradients alone could tell",
        "present, cause not tested": f"{shrink}; whether that causes anything was not tested"
        f"{_against(verdict)}",
        "present, not causal": f"{shrink}, but restoring them does not close the gap"
        f"{_under_sgd(verdict)}",
        "refuted": f"the gradients of {case.name} do not vanish towards the input"
        f"{_they_grow(verdict)}",
        "nothing to explain": f"{case.name} does no worse than {case.reference_name}",
    }
    return f"{outcome[0].upper()}{outcome[1:]}: {because[outcome]}."


def _they_grow(verdict: "Verdict") -> str:
    growing = sizes_that_go(verdict.case, "exploding")
    if len(growing) == 1:
        return f"; {GRADIENT_SIZES[growing[0]].symbol} grows"
    return "; they grow" if growing else ""


def _under_sgd(verdict: "Verdict") -> str:
    arm = verdict.restored.under_sgd
    return f". Under SGD it lowers the training loss ({arm})" if arm else ""


def undetermined(verdict: "Verdict") -> str:
    """Why, as the end of a sentence."""
    name, n = verdict.case.name, len(verdict.case.seeds)
    if not enough_seeds(n):
        return (
            f"{n} {'seed' if n == 1 else 'seeds'} of {name} can be described, but nothing can be "
            f"concluded from fewer than {SEEDS}"
        )
    if len(directions(verdict.case)) > 1:
        return f"of the two sizes of {name}'s gradients one vanishes and the other explodes"
    there, reaches, _, caused = (link.status for link in verdict.links)
    if there != "yes":
        return f"whether the gradients of {name} vanish cannot be told from {n} seeds"
    if verdict.gap_status != "yes":
        return f"the gradients of {name} vanish, but that there is a gap to explain is not known"
    if caused == "yes" and reaches == "no":
        return (
            "the evidence conflicts. Restoring the gradients closes the gap, and yet what the "
            f"early layers of {name} receive does not hold them back"
        )
    if _widens(verdict):
        return f"the gradients of {name} vanish; restoring them makes the gap wider"
    return f"the gradients of {name} vanish; whether restoring them closes the gap is open"


def _widens(verdict: "Verdict") -> bool:
    return p_beyond(verdict.restored.shares, 0.0, "below") <= at.ALPHA.value


def _against(verdict: "Verdict") -> str:
    """What speaks against it, without ruling it out."""
    _, reaches, matters, _ = (link.status for link in verdict.links)
    if reaches == "no":
        return ", and what the early layers receive does not hold them back (link 2)"
    return ", though the early layers did learn (link 3)" if matters == "no" else ""


def _how_much(verdict: "Verdict") -> str:
    is_main = p_beyond(verdict.restored.shares, at.SHARE_MAIN.value, "above") <= at.ALPHA.value
    return (
        f"more than {part(at.SHARE_MAIN.value)} of the gap: the main cause"
        if is_main
        else "a part of the gap: they contribute to it"
    )


def _numbers(verdict: "Verdict") -> str:
    parts = []
    for size in JUDGED_SIZES:
        found, is_cut = early_decades(verdict.case, size), n_cut_off(verdict.case, size) > 0
        if not (found.n or is_cut):
            continue
        spread = f" ({at.LEVEL} {found.low:+.2f} to {found.high:+.2f})" if found.n > 1 else ""
        decades = "" if is_cut else f", {found.mean:+.2f} decades{spread}"
        what = f"{SIZE_WORDS[size]} ({GRADIENT_SIZES[size].symbol})"
        parts.append(f"{what} is {at_the_first_layer(verdict.case, size)}{decades}")
    if not parts:
        return ""
    limit = at.VANISHING_DECADES
    return (
        f"Early in training, {'; '.join(parts)}. Vanishing would be below -{limit.value:g} "
        f"decade{'' if limit.value == 1 else 's'}."
    )


def at_the_first_layer(case: Case, size: str) -> str:
    """How much larger or smaller a size is than at the last layer."""
    if n_cut := n_cut_off(case, size):
        return f"0 at the first layer in {n_cut} of {len(case.seeds)} seeds"
    decades = early_decades(case, size).mean
    change = "larger" if decades > 0 else "smaller"
    return f"{times(decades)} times {change} at the first layer than at the last"


# -- the gap ---------------------------------------------------------------------------------------


def _gap_sentence(verdict: "Verdict") -> str:
    case = verdict.case
    n_both = _n_both_failed(verdict)
    both = f" In {n_both} of {len(case.seeds)} seeds both trainings failed." if n_both else ""
    if not verdict.gap:
        return f"The gap was not measured.{both}" if n_both else ""
    numbers = [worse_by(one) for one in verdict.gap]
    state = {
        "yes": "There is a gap to explain",
        "no": f"There is no gap beyond the margins of {at.LOSS_MARGIN.value:g} nats and "
        f"{at.ACCURACY_MARGIN.value:g}",
        "undetermined": "Whether there is a gap is open",
        "not measured": "The gap was not measured",
    }[verdict.gap_status]
    if is_discordant(verdict):
        state = "The two measures of a gap disagree"
    elif not enough_seeds(len(case.seeds)) and all(one.interval.low > 0 for one in verdict.gap):
        state = f"There seems to be a gap (a claim needs {SEEDS} seeds)"
    said = f"{state}: {case.name} is {' and '.join(numbers)} than {case.reference_name}."
    return said + _against_one(verdict) + both


def _n_both_failed(verdict: "Verdict") -> int:
    """The seeds in which both trainings ended without a finite loss."""

    def failed(network: TrainedNetwork) -> bool:
        return network.train_loss is not None and not math.isfinite(network.train_loss)

    return sum(verdict.case.pairs(lambda mine, theirs: failed(mine) and failed(theirs)))


def _against_one(verdict: "Verdict") -> str:
    """Trainings without a finite loss, or without an end: they count against their network."""
    case = verdict.case
    values = verdict.gap[0].values
    counts = {
        case.name: values.count(float("inf")),
        case.reference_name: values.count(float("-inf")),
    }
    return "".join(
        f" {n} of {len(values)} trainings of {name} failed where the other network's did not, "
        "which counts against it."
        for name, n in counts.items()
        if n
    )


def is_discordant(verdict: "Verdict") -> bool:
    """Whether one outcome is surely worse, and the other surely not, beyond the margin."""
    found = {gap_status(one.values, one.threshold.value) for one in verdict.gap}
    return {"yes", "no"} <= found


def worse_by(gap: Evidence) -> str:
    """How much worse, or better, the accused network does, with the interval over seeds."""
    found, words = gap.interval, GAP_WORDS[gap.name]
    unit = f" {gap.unit}" if gap.unit else ""
    if not found.n:
        failed = {"worse": math.inf, "better": -math.inf}
        sides = " or ".join(word for word, value in failed.items() if value in gap.values)
        return f"{sides} without a number in {words}"
    ends = (found.low, found.high) if found.mean >= 0 else (-found.high, -found.low)
    spread = [f"{at.LEVEL} {ends[0]:+.3f} to {ends[1]:+.3f}"] if found.n > 1 else []
    spread += [f"{gap.n_failed} more failed"] if gap.n_failed else []
    beside = f" ({'; '.join(spread)})" if spread else ""
    direction = "better" if found.mean < 0 else "worse"
    return f"{direction} by {abs(found.mean):.3f}{unit}{beside} in {words}"


# -- next ------------------------------------------------------------------------------------------


def next_steps(verdict: "Verdict") -> tuple[str, ...]:
    """What to do now, the most telling first."""
    if verdict.outcome == "no verdict":
        return ("Run `gradflow check --controls` and report what fails.",)
    if verdict.outcome == "nothing to explain":
        return ()
    steps = [*_seeds_step(verdict)]
    is_there = verdict.links[0].status == "yes"
    how = COMPARE.get(verdict.case.source)
    if is_there and how and not verdict.gap and not _n_both_failed(verdict):
        steps.append(f"{how}: without a gap there is nothing that vanishing could explain.")
    if is_there and verdict.links[3].status == "not measured":
        how = RESTORE[verdict.case.source]
        steps.append(
            f"Change the gradients on purpose{how}: only if the gap closes are they the cause."
        )
    for rival in verdict.rivals:
        if rival.status == "yes":
            steps.append(
                f"Look into {rival.title} ({rival.key}): the data are consistent with it. Change "
                "it on purpose to see whether the gap closes."
            )
    unmeasured = [rival.key for rival in verdict.rivals if rival.needs_weights]
    if unmeasured:
        how = MEASURE[verdict.case.source]
        steps.append(f"Measure the rest of {', '.join(unmeasured)}; {how}.")
    return tuple(steps)


def _seeds_step(verdict: "Verdict") -> list[str]:
    """How many seeds, and how to have them: where they would decide something."""
    n, how = len(verdict.case.seeds), MORE_SEEDS[verdict.case.source]
    if not enough_seeds(n):
        return [f"Train {SEEDS} seeds, {how.format(n=SEEDS)}: fewer prove nothing."]
    if verdict.links[0].status == "undetermined" and len(directions(verdict.case)) < 2:
        needed = verdict.links[0].seeds_needed
        if needed is None:
            return ["Train more seeds: what is open cannot be told from these."]
        more = f"{max(needed, n + 1)}"
        return [
            f"Train about {more} seeds, {how.format(n=more)}, and judge them all: with the mean "
            f"and the spread seen so far they decide in {POWER:.0%} of cases. The tests allow for "
            f"{at.N_LOOKS} looks in all; what is open after the last stays so."
        ]
    if verdict.gap_status == "undetermined" and not is_discordant(verdict):
        return ["Train more seeds: whether there is a gap cannot be told from these."]
    is_asked = verdict.links[0].status == verdict.gap_status == "yes"
    if is_asked and verdict.links[3].status == "undetermined" and not _widens(verdict):
        return ["Train more seeds: whether the gap closes cannot be told from these."]
    return []
