"""The result of a check in sentences, the answer first."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gradflow.analysis import thresholds as at
from gradflow.examine.trainability import ALIKE, LOUD, SHRUNK, TRAINED

if TYPE_CHECKING:
    from gradflow.examine.initial import InitialCheck


def sentences(found: "InitialCheck") -> list[str]:
    said = [_answer(found), *_warnings(found), *_silent(found), *_others(found)]
    said += [
        "This describes the start only, with one batch of noise and random labels. δ is how much "
        "gradient is passed from layer to layer, ŝ what a small relative change of a weight does "
        "to the loss. They answer different questions and may disagree.",
        _draws(found),
        f"Loss: {found.loss}.",
    ]
    return [*said, found.note] if found.note else said


def times(decades: float) -> str:
    """
    >>> times(2.456), times(-2.456), times(9.2)
    ('286', '0.0035', '10^9.2')
    """
    if not math.isfinite(decades):
        return "an unknown number of"
    if abs(decades) >= 5:
        return f"10^{decades:.1f}"
    factor = 10**decades
    return f"{factor:,.0f}" if factor >= 100 else f"{factor:.2g}"


def _answer(found: "InitialCheck") -> str:
    typical, n_layers = found.path.typical, len(found.layers)
    said = f"{found.label[0].upper()}{found.label[1:]}. "
    change = typical.delta.decades
    if typical.delta.n_without:
        said += f"No gradient at all reaches {typical.delta.n_without} of the {n_layers} layers"
    elif math.isnan(change):
        change = found.profiles["scale_invariant"].rate.decades
        return said + (
            "The layers run inside one module, so δ cannot be measured between them; ŝ at the "
            f"first is {times(change)} times that at the last."
        )
    else:
        said += f"δ at the first of {n_layers} layers is {times(change)} times that at the last"
    n, low, high = TRAINED[found.norm]
    said += (
        f"; in the {n} networks of the zoo with {found.norm} that train with SGD and AdamW: "
        f"{times(low)} to {times(high)} times."
    )
    if not found.is_certain and found.n_draws > 1:
        outlooks = [one.outlook for one in found.path.prospects]
        others = ", ".join(f"{outlooks.count(one)} × {one}" for one in dict.fromkeys(outlooks))
        said += f" The draws differ: {others}."
    return said


def _warnings(found: "InitialCheck") -> list[str]:
    said = []
    typical = found.path.typical
    drop = typical.delta.drop
    if drop is not None and not typical.delta.n_without and typical.delta.decades < SHRUNK.value:
        said.append(
            f"The largest single fall is {times(-drop.decades)} times, into "
            f"{found.layers[drop.index]}."
        )
    n_repeated = sum("#" in layer for layer in found.layers)
    if found.cause and 2 * n_repeated > len(found.layers):
        said.append(
            f"{n_repeated} of these layers are repeated calls, as in a loop over time. The limits "
            "are for tasks that need the first time step; a task that needs only later ones may "
            "still be learned."
        )
    if typical.differing < ALIKE.value:
        said.append(
            f"Every input gets nearly the same output: only a share of {typical.differing:.1g} "
            f"differs between inputs (networks that train: above {ALIKE.value:g})."
        )
    if typical.output_rms > LOUD.value:
        said.append(
            f"The output is large, rms {typical.output_rms:.3g} (networks that train: below "
            f"{LOUD.value:g})."
        )
    if found.nonfinite:
        first = found.nonfinite[0]
        sites = len({one.site for one in found.nonfinite})
        said.append(
            f"NaN or inf at {sites} places, the first at {first.site} ({first.measure}, "
            f"{first.count} elements). Look there first; the other numbers are unreliable."
        )
    return said


def _silent(found: "InitialCheck") -> list[str]:
    """Which layers have no gradient, and why."""
    said = []
    if found.has_zero_head:
        said.append(
            "The last layer starts at zero or nearly so, as in some designs, and passes no "
            "gradient in the first step. For this check it was drawn at random, as if it had moved."
        )
    if found.unreached:
        said.append(
            f"No loss depends on {_listed(found.unreached)}: behind a detach or no_grad, in an "
            "output that is not used, or never called. These layers do not learn, and the answer "
            "leaves them out."
        )
    if found.without_gradient:
        after = (
            "These layers do not learn"
            if found.path.typical.delta.n_without
            else "The gradient goes round them: they learn later where a branch starts at zero, "
            "and never where one is dead"
        )
        said.append(
            f"No gradient at all at {_listed(found.without_gradient)}: it is exactly 0, or too "
            f"small for the number format. {after}."
        )
    if max(found.dead.values(), default=0) > 0:
        worst = max(found.dead, key=found.dead.__getitem__)
        said.append(
            f"Dead channels (0 for the whole batch): {np.mean(list(found.dead.values())):.1%} on "
            f"average over the activations, at most {found.dead[worst]:.1%}, at {worst}."
        )
    return said


def _others(found: "InitialCheck") -> list[str]:
    if len(found.paths) < 2:
        return []
    others = "; ".join(
        f"{path.layers[0]} to {path.layers[-1]} {path.typical.outlook}, "
        f"{times(path.typical.delta.decades)} times"
        for path in found.paths
        if path is not found.path
    )
    return [
        f"This is the worst of {len(found.paths)} paths, from {found.layers[0]} to "
        f"{found.layers[-1]}. The others: {others}."
    ]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more layers" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _draws(found: "InitialCheck") -> str:
    if found.n_draws == 1:
        return "A single draw gives no interval: the result may be chance."
    change = found.profiles["output_gradient"].change
    note = f"{found.n_draws} draws of {found.drawn}"
    if math.isfinite(change.mean):
        note += (
            f": first over last δ {times(change.mean)} times ({at.LEVEL} {times(change.low)} to "
            f"{times(change.high)})"
        )
    if "weights" not in found.drawn:
        note += ". The weights are one draw; to vary them, give a function that makes the model"
    return note + "."
