"""What a person sees of the maps in the terminal, as text for rich."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from gradflow.analysis.numerals import beside
from gradflow.present.plots.saliency import NO_MAP
from gradflow.present.saliency.attribution import Attribution, misses
from gradflow.present.saliency.gallery import Gallery
from gradflow.present.saliency.trust import SHORT, TRUST_THRESHOLDS, Trust, TrustCheck, area
from gradflow.present.terminal_table import table


def maps_view(results: Mapping[str, Attribution]) -> RenderableType:
    """Where each network's maps were taken, and what speaks against them."""
    lines = []
    for name, one in results.items():
        predicted = [
            values
            for label, values in zip(one.map_classes, one.maps, strict=True)
            if label == one.predicted
        ]
        is_empty = any(not (np.isfinite(values).all() and values.max() > 0) for values in predicted)
        at = f" at {one.layer}" if one.layer else ""
        said = [f"{name}: {one.method}{at}", *([NO_MAP] if is_empty else []), *one.notes]
        lines.append(Text("; ".join(said)))
    return Group(*lines)


def predictions_view(pictures: Sequence[Mapping[str, Any]], n_shown: int = 20) -> RenderableType:
    """What each network says of each picture of a folder; see `explain_files`."""
    rows = [
        [picture["image"], *(f"{one['predicted']} {max(one['probabilities'].values()):.1%}"
                             for one in picture["networks"].values())]
        for picture in pictures[:n_shown]
    ]  # fmt: skip
    found = table(("picture", *pictures[0]["networks"]), rows)
    found.columns[0].overflow = "fold"
    if len(pictures) <= n_shown:
        return found
    return Group(found, Text(f"… and {len(pictures) - n_shown} more: see the scores"))


def miss_lines(method: str, pictures: Sequence[Mapping[str, Any]]) -> list[Text]:
    """For each network whose maps should add up to something, by how much they miss it at most."""
    lines = []
    for name in pictures[0]["networks"]:
        asked = [picture["networks"][name] for picture in pictures]
        if any(one["convergence_deltas"] is None for one in asked):
            continue
        worst = max(misses(one["convergence_deltas"], one["logit_changes"]).max() for one in asked)
        lines.append(
            Text(
                f"{name}: {method}: the sum of a map misses the change of its logit by at most "
                f"{100 * worst:.1f} %"
            )
        )
    return lines


def trust_view(trust: Mapping[str, Trust]) -> RenderableType:
    """The checks of a method, a row for each network."""
    first = next(iter(trust.values()))
    images = "1 picture" if first.n_images == 1 else f"median of {first.n_images} pictures"
    title = f"Does {first.method} mean anything? Map of the predicted class, {images}"
    rows = [("(passes if)", *map(_condition, SHORT), "")]
    for name, one in trust.items():
        answer = "fails" if one.failed else "passes"
        if not one.failed and any(check.passed is None for check in one.checks):
            answer = "unknown"
        rows.append((name, *map(_value, one.checks), answer))
    numbers = SHORT.values()
    lines = [
        f"{name}: deletion area {area(one.deletion):.2f}, insertion area {area(one.insertion):.2f}"
        for name, one in trust.items()
    ]
    found = table(("network", *numbers, "answer"), rows, title, right=numbers)
    return Group(found, *map(Text, lines))


def _condition(name: str) -> str:
    sign = ">" if name == "insertion_minus_deletion" else "<"
    return f"{sign} {float(TRUST_THRESHOLDS[name]):g}"


def _value(check: TrustCheck) -> str:
    if check.passed is None:
        return "unknown"
    return beside(check.value, float(check.threshold)) + ("" if check.passed else " ✗")


def gallery_view(galleries: Mapping[str, Gallery]) -> RenderableType:
    """How many test pictures of each class each network gets right."""
    first = next(iter(galleries.values()))
    rows = [
        [label, *(f"{one.n_right[i]} of {one.n_pictures[i]}" for one in galleries.values())]
        for i, label in enumerate(first.classes)
    ]
    found = table(("class", *galleries), rows, "test pictures named right", right=galleries)
    notes = [Text(f"{name}: {note}") for name, one in galleries.items() for note in one.notes]
    return Group(found, *notes)
