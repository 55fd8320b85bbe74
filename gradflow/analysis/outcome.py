"""From the links to the outcome: one table, of which every row excludes the others."""

from typing import Literal

from gradflow.analysis.findings import Status

Outcome = Literal[
    "supported",
    "supported for signal and gradient",
    "present, cause not tested",
    "present, not causal",
    "refuted",
    "nothing to explain",
    "undetermined",
    "no verdict",
]
OUTCOMES: dict[Outcome, str] = {
    "supported": "the gradients vanish, and restoring them alone closes a part of the gap",
    "supported for signal and gradient": "the gradients vanish, and what restores them and the "
    "signal together closes a part of the gap: which of the two it was is not told apart",
    "present, cause not tested": "the gradients vanish, and nobody has yet restored them to see "
    "whether the gap closes",
    "present, not causal": "the gradients vanish, and restoring them does not close the gap",
    "refuted": "the gradients do not vanish",
    "nothing to explain": "the accused network does no worse than the other one",
    "undetermined": "the data do not decide",
    "no verdict": "the instrument failed its controls on this machine",
}

# What an intervention that restores the gradients changes.
Changes = Literal["gradients", "signal and gradients"]


def outcome_of(
    gap: Status, exists: Status, reaches: Status, causes: Status, changes: Changes = "gradients"
) -> Outcome:
    """The outcome of a gap and of links 1, 2 and 4; link 3 describes and decides nothing.

    Early layers that learned something (link 3) may have learned less than they could.
    """
    match gap, exists, reaches, causes:
        case "no", _, _, _:
            return "nothing to explain"
        case _, "no", _, _:
            return "refuted"
        case _, "yes", _, "not measured":
            return "present, cause not tested"
        case "yes", "yes", _, "no":
            return "present, not causal"
        case "yes", "yes", ("yes" | "undetermined" | "not measured"), "yes":
            alone = changes == "gradients"
            return "supported" if alone else "supported for signal and gradient"
        case _:  # open, or the evidence conflicts: what does not reach the weights closes the gap
            return "undetermined"
