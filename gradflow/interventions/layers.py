"""Which layers an intervention is about: by their number on the main path, or by stage."""

import re
from collections.abc import Sequence

from torch import nn

from gradflow.analysis.layers import stages_of
from gradflow.examine.path import path_layers
from gradflow.interventions.intervention import Intervention

ALL, NONE = "all", "none"


class OfLayers(Intervention):
    """An intervention on `layers`, of which none is the dose that changes nothing."""

    layers: str
    no_dose = {"layers": NONE}

    def __post_init__(self) -> None:
        check_layers(self.layers)


def chosen_layers(model: nn.Module, text: str) -> list[str]:
    """The names of the layers of `model` that `text` means, input first.

    Layers are counted from 1 along the main path: convolutions and linear layers without
    projections, so that Plain-34 and ResNet-34 count alike, from 1 (the stem) to 34 (the
    classifier). `text` is `all`, `none`, or parts separated by commas or `+`: `3`, `1-17`, or a
    stage such as `layer1`. Raises ValueError for what the model does not have.
    """
    path = path_layers(model)
    return [path[i] for i in sorted(_numbers(text, stages_of(path)))]


def _numbers(text: str, stages: Sequence[str]) -> set[int]:
    """Places on the path, from 0."""
    if text == ALL:
        return set(range(len(stages)))
    if text == NONE:
        return set()
    return {i for part in _parts(text) for i in _of_part(part, text, stages)}


def _of_part(part: str, text: str, stages: Sequence[str]) -> list[int]:
    if part in stages:
        return [i for i, stage in enumerate(stages) if stage == part]
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last <= len(stages):
        known = ", ".join(dict.fromkeys(stage for stage in stages if stage))
        raise ValueError(
            f"Expected `layers` as numbers from 1 to {len(stages)} (3 or 1-17), as stages "
            f"({known}), '{ALL}' or '{NONE}', but got {part!r} in {text!r}."
        )
    return list(range(first - 1, last))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"[,+]", text)]


def check_layers(text: str) -> None:
    """Refuse what means layers of no network; the network itself is not known yet."""
    parts = _parts(text)
    for part in parts:
        is_range = re.fullmatch(r"(\d+)-(\d+)", part)
        if not re.fullmatch(r"[\w.]+|\d+-\d+", part) or (
            is_range and not 1 <= int(is_range[1]) <= int(is_range[2])
        ):
            raise ValueError(
                f"Expected `layers` such as 1-17, 3, layer1, '{ALL}' or '{NONE}', several "
                f"separated by commas, but got {text!r}."
            )
