"""What a person sees of the maps in the terminal, as text for rich."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradflow.analysis.numerals import beside
from gradflow.present.blocks import BlockPicture
from gradflow.present.saliency.attribution import Attribution, misses
from gradflow.present.saliency.gallery import Gallery
from gradflow.present.saliency.trust import SHORT, TRUST_THRESHOLDS, Trust, TrustCheck, area

MOST_MEANS = 5  # mean maps beside each other
MEAN_SIDE = 14  # pixels a side: five such pictures stand in 80 columns
NO_MAP = "no map: nothing above zero"


def maps_view(photo: np.ndarray, results: Mapping[str, Attribution]) -> RenderableType:
    """The map of each network's predicted class, side by side; `photo` (S, S, 3) uint8."""
    grid = Table.grid(padding=(0, 3))
    grid.add_row(*(_picture(photo, name, result) for name, result in results.items()))
    return grid


def _picture(photo: np.ndarray, name: str, result: Attribution) -> RenderableType:
    title = Text(f"{name}: {_said(result)}", overflow="fold")
    layer = f" at {result.layer}" if result.layer else ""
    lines: list[RenderableType] = [title, Text(f"{result.method}{layer}")]
    if result.predicted in result.map_classes:
        values = result.maps[result.map_classes.index(result.predicted)]
        if np.isfinite(values).all() and values.max() > 0:
            lines.append(BlockPicture(photo, values))
        else:
            lines.append(Text(NO_MAP))
    return Group(*lines, *(Text(note) for note in result.notes))


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


def folder_view(
    pictures: Sequence[Mapping[str, Any]], photo: np.ndarray, results: Mapping[str, Attribution]
) -> RenderableType:
    """What each network says of each picture, and the maps of the first: `photo`, `results`."""
    first = Text(f"\nmaps of {pictures[0]['image']}")
    return Group(predictions_view(pictures), first, maps_view(photo, results))


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


def _said(result: Attribution) -> str:
    return f"{result.classes[result.predicted]} {result.probabilities[result.predicted]:.1%}"


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
    """How many test pictures of each class each network gets right, and its mean maps."""
    table = Table(title="test pictures named right", title_justify="left")
    table.add_column("class")
    for name in galleries:
        table.add_column(name, justify="right")
    first = next(iter(galleries.values()))
    for i, label in enumerate(first.classes):
        cells = (f"{one.n_right[i]} of {one.n_pictures[i]}" for one in galleries.values())
        table.add_row(Text(label), *cells)
    return Group(table, *(_mean_maps(name, one) for name, one in galleries.items()))


def _mean_maps(name: str, gallery: Gallery) -> RenderableType:
    """The mean maps of the first classes side by side, on no photograph."""
    n = len(gallery.classes)
    which = "each class" if n <= MOST_MEANS else f"the first {MOST_MEANS} of {n} classes"
    layer = f" at {gallery.layer}" if gallery.layer else ""
    grid = Table.grid(padding=(0, 2))
    for _ in gallery.classes[:MOST_MEANS]:
        grid.add_column(width=MEAN_SIDE, overflow="fold")
    grid.add_row(*map(Text, gallery.classes[:MOST_MEANS]))
    grid.add_row(*map(_mean_map, gallery.mean_maps[:MOST_MEANS]))
    title = Text(f"\n{name}: mean map of {which}, {gallery.method}{layer}")
    return Group(title, grid, *map(Text, gallery.notes))


def _mean_map(values: np.ndarray) -> RenderableType:
    if not np.isfinite(values).all():
        return Text(NO_MAP)
    grey = np.full((*values.shape, 3), 128, np.uint8)
    return BlockPicture(grey, values, MEAN_SIDE)
