"""The maps of one network for one picture, class by class, and who makes them."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradflow.examine.noise import in_mode
from gradflow.present.saliency.methods import (
    LARGEST_DELTA,
    METHODS,
    Method,
    in_batches,
    per_batch,
)
from gradflow.typed import to_json

MOST_MAPS = 10  # maps made where the caller names no number: what one picture can show


@dataclass(frozen=True, eq=False)
class Attribution:
    """The maps of one network for one photograph.

    What the numbers of a map are says the function of its method (`methods`). `deltas` and
    `changes` are of integrated gradients: by how much the map's sum misses the change of the logit
    it explains, and that change. `notes` stand on the picture: what speaks against these maps.
    """

    method: str
    layer: str | None  # the layer that the map was taken at; None where it is taken at the input
    classes: tuple[str, ...]
    probabilities: np.ndarray  # (classes,)
    maps: np.ndarray  # (n_maps, S, S) float
    map_classes: tuple[int, ...]  # (n_maps,): the index of each map's class in `classes`
    deltas: np.ndarray | None = None  # (n_maps,) logits
    changes: np.ndarray | None = None  # (n_maps,) logits
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (np.isfinite(self.probabilities).all() and np.isfinite(self.maps).all()):
            raise ValueError(
                "Expected finite probabilities and maps, but the network's are not: its weights "
                "are too large, or a variance is negative. Ask another epoch, or train it anew."
            )

    @property
    def predicted(self) -> int:
        """The index of the most probable class."""
        return int(self.probabilities.argmax())

    def to_json(self) -> dict[str, Any]:
        """All but the maps."""
        return {
            "predicted": self.classes[self.predicted],
            "probabilities": dict(zip(self.classes, map(float, self.probabilities), strict=True)),
            "layer": self.layer,
            "map_classes": [self.classes[i] for i in self.map_classes],
            "convergence_deltas": to_json(self.deltas),
            "logit_changes": to_json(self.changes),
            "notes": list(self.notes),
        }


def attribute(
    model: nn.Module,
    image: Tensor,
    class_names: Sequence[str],
    *,
    method: str = "gradcam",
    n_classes: int | None = None,
) -> Attribution:
    """The class probabilities of `image`, (1, 3, S, S), and one map for each class shown.

    As `attribute_all`, for one image.
    """
    if image.ndim != 4 or len(image) != 1:
        raise ValueError(
            f"Expected one square image of shape (1, 3, S, S), but got {tuple(image.shape)}."
        )
    (found,) = attribute_all(model, image, class_names, method=method, n_classes=n_classes)
    return found


def attribute_all(
    model: nn.Module,
    images: Tensor,
    class_names: Sequence[str],
    *,
    method: str = "gradcam",
    n_classes: int | None = None,
    classes: Tensor | None = None,
    note: str | None = None,
) -> list[Attribution]:
    """For each image the class probabilities, and one map for each class shown.

    `images` are (B, 3, S, S), normalised as in training, on the model's device. Up to ten classes
    are all shown in their own order, so that networks can be compared column by column;
    `n_classes`, or more than ten classes, shows the most probable ones, best first; `classes`,
    (B, K), names them; `note` stands on each picture. The model is used in eval mode and comes back
    as it was: flags, gradients and hooks. Raises ValueError for an unknown method, images of
    another shape, or names that do not fit the model's outputs.
    """
    if method not in METHODS:
        raise ValueError(f"Expected `method` to be one of {tuple(METHODS)}, but got {method!r}.")
    if images.ndim != 4 or not len(images) or images.shape[2] != images.shape[3]:
        raise ValueError(
            f"Expected one square image or more, of shape (B, 3, S, S), but got "
            f"{tuple(images.shape)}."
        )
    if n_classes is not None and n_classes < 1:
        raise ValueError(f"Expected `n_classes` to be at least 1, but got {n_classes}.")
    images = images.detach().clone()  # the caller's may come from a graph of their own
    with inspecting(model), torch.enable_grad():
        probabilities = predict_all(model, images, len(class_names))
        if classes is None:
            classes = torch.tensor([_shown(row, n_classes) for row in probabilities])
        classes = classes.to(images.device)
        maps = METHODS[method].compute(model, images, classes)
    how, names = METHODS[method], tuple(class_names)
    shown = how.shown(maps.values).detach().cpu().numpy()
    deltas, changes = (
        [None] * len(images) if values is None else values.detach().cpu().numpy()
        for values in (maps.deltas, maps.changes)
    )
    return [
        Attribution(
            how.name, maps.layer, names, probabilities[i], shown[i], tuple(of), deltas[i],
            changes[i], (*_notes(how, deltas[i], changes[i]), *([note] if note else ())),
        )
        for i, of in enumerate(classes.tolist())
    ]  # fmt: skip


def predict_all(model: nn.Module, images: Tensor, n_classes: int | None = None) -> np.ndarray:
    """(B, classes) probabilities of the model as it is, some images at a time."""
    found = []
    for some in in_batches(images, per_batch(images)):
        with torch.no_grad():
            logits = model(some)
        if n_classes is not None and logits.shape != (len(some), n_classes):
            raise ValueError(
                f"Expected the model to return one logit for each of {n_classes} classes, "
                f"but got {tuple(logits.shape)}."
            )
        found.append(logits.double().softmax(dim=1).cpu())
    return np.asarray(torch.cat(found).numpy())


@contextlib.contextmanager
def inspecting(model: nn.Module) -> Iterator[nn.Module]:
    """Hand out `model` in eval mode with frozen weights, then put everything back."""
    required_grad = {weight: weight.requires_grad for weight in model.parameters()}
    with in_mode(model, training=False):
        try:
            yield model.requires_grad_(False)
        finally:
            for weight, flag in required_grad.items():
                weight.requires_grad_(flag)


def _shown(probabilities: np.ndarray, n_classes: int | None) -> tuple[int, ...]:
    if n_classes is None and len(probabilities) <= MOST_MAPS:
        return tuple(range(len(probabilities)))
    best_first = np.argsort(-probabilities, kind="stable")
    return tuple(int(i) for i in best_first[: n_classes or MOST_MAPS])


def misses(
    deltas: Sequence[float] | np.ndarray, changes: Sequence[float] | np.ndarray
) -> np.ndarray:
    """How far the sum of each map misses the change of its logit, as a share of it.

    >>> misses([0.1, -0.3], [2.0, -1.0])
    array([0.05, 0.3 ])
    """
    return np.abs(deltas) / np.maximum(np.abs(changes), 1e-12)


def method_notes(method: Method) -> tuple[str, ...]:
    """What speaks against every map of a method."""
    return ("mostly edges (Adebayo et al. 2018)",) if method.warning is not None else ()


def _notes(
    method: Method, deltas: np.ndarray | None, changes: np.ndarray | None
) -> tuple[str, ...]:
    if deltas is None or changes is None:
        return method_notes(method)
    worst = float(misses(deltas, changes).max())
    return (f"sum misses by {worst:.0%}",) if worst > LARGEST_DELTA else ()
