"""What a person sees of the maps in the terminal, as text for rich."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradflow.analysis.numerals import beside
from gradflow.present.saliency.attribution import Attribution, misses
from gradflow.present.saliency.gallery import Gallery
from gradflow.present.saliency.trust import SHORT, TRUST_THRESHOLDS, Trust, TrustCheck, area

NO_MAP = "no map: nothing above zero"


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
    """What each network says of each picture of a folder; see `Explained.to_json`."""
    table = Table()
    table.add_column("picture", overflow="fold")
    for name in pictures[0]["networks"]:
        table.add_column(name)
    for picture in pictures[:n_shown]:
        said = [one["predicted"] for one in picture["networks"].values()]
        sure = [max(one["probabilities"].values()) for one in picture["networks"].values()]
        cells = [Text(f"{label} {p:.1%}") for label, p in zip(said, sure, strict=True)]
        table.add_row(Text(picture["image"]), *cells)
    if len(pictures) <= n_shown:
        return table
    return Group(table, Text(f"… and {len(pictures) - n_shown} more: see the scores"))


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
    table = Table(
        title=f"Does {first.method} mean anything? Map of the predicted class, {images}",
        title_justify="left",
    )
    for column in ("network", *SHORT.values(), "answer"):
        table.add_column(column, justify="left" if column in ("network", "answer") else "right")
    table.add_row("(passes if)", *(_condition(name) for name in SHORT), "")
    for name, one in trust.items():
        answer = "fails" if one.failed else "passes"
        if not one.failed and any(check.passed is None for check in one.checks):
            answer = "unknown"
        table.add_row(Text(name), *(_value(check) for check in one.checks), answer)
    lines = [
        f"{name}: deletion area {area(one.deletion):.2f}, insertion area {area(one.insertion):.2f}"
        for name, one in trust.items()
    ]
    return Group(table, *map(Text, lines))


def _condition(name: str) -> str:
    sign = ">" if name == "insertion_minus_deletion" else "<"
    return f"{sign} {float(TRUST_THRESHOLDS[name]):g}"


def _value(check: TrustCheck) -> str:
    if check.passed is None:
        return "unknown"
    return beside(check.value, float(check.threshold)) + ("" if check.passed else " ✗")


def gallery_view(galleries: Mapping[str, Gallery]) -> RenderableType:
    """How many test pictures of each class each network gets right."""
    table = Table(title="test pictures named right", title_justify="left")
    table.add_column("class")
    for name in galleries:
        table.add_column(name, justify="right")
    first = next(iter(galleries.values()))
    for i, label in enumerate(first.classes):
        cells = (f"{one.n_right[i]} of {one.n_pictures[i]}" for one in galleries.values())
        table.add_row(Text(label), *cells)
    notes = [Text(f"{name}: {note}") for name, one in galleries.items() for note in one.notes]
    return Group(table, *notes)
