"""The test set, class by class: what a network looks at where it is right and where wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradflow.data import normalise
from gradflow.present.saliency.attribution import (
    Attribution,
    attribute_all,
    inspecting,
    method_notes,
    misses,
    predict_all,
)
from gradflow.present.saliency.methods import LARGEST_DELTA, METHODS, in_batches, per_batch

N_RIGHT = 3  # pictures of a class in the gallery: the first of the test set
N_WRONG = 2  # those in which the network was surest of another class
N_MEAN = 20  # pictures of a class in the mean map, the first of the test set
TRUE, SAID = 0, 1  # of the two maps of a picture: of its own class, of the predicted one


@dataclass(frozen=True, eq=False)
class Example:
    """One picture of the gallery with the map of the class that the network predicted.

    `delta` and `change` are of integrated gradients: see `Attribution`.
    """

    index: int  # in the test set
    pixels: np.ndarray  # (S, S, 3) uint8
    map: np.ndarray  # (S, S)
    label: int
    predicted: int
    probability: float  # of the predicted class
    delta: float | None = None  # logits
    change: float | None = None  # logits

    @property
    def is_right(self) -> bool:
        return self.label == self.predicted


@dataclass(frozen=True, eq=False)
class Gallery:
    """Examples of each class, right ones first, and the mean map of each class.

    A mean map is that of the first 20 pictures of the class, of their maps for this class; see
    `mean_map`. NaN where no map has a positive value.
    """

    method: str
    layer: str | None
    classes: tuple[str, ...]
    examples: tuple[tuple[Example, ...], ...]  # by class
    mean_maps: np.ndarray  # (classes, S, S)
    n_in_mean: tuple[int, ...]  # by class
    n_right: tuple[int, ...]  # by class, of all test pictures
    n_pictures: tuple[int, ...]  # by class
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "layer": self.layer,
            "notes": list(self.notes),
            "classes": {
                name: {
                    "n_pictures": self.n_pictures[i],
                    "n_right": self.n_right[i],
                    "n_in_mean_map": self.n_in_mean[i],
                    "examples": [
                        {
                            "test_image": example.index,
                            "predicted": self.classes[example.predicted],
                            "probability": example.probability,
                            "is_right": example.is_right,
                            "convergence_delta": example.delta,
                            "logit_change": example.change,
                        }
                        for example in self.examples[i]
                    ],
                }
                for i, name in enumerate(self.classes)
            },
        }


def make_gallery(
    model: nn.Module, pixels: Tensor, labels: Tensor, class_names: Sequence[str], method: str
) -> Gallery:
    """Choose pictures, explain them and average; `pixels` (n, 3, S, S) uint8 of the test set."""
    n_at_once = per_batch(pixels)
    with inspecting(model):
        probabilities = np.concatenate(
            [
                predict_all(model, normalise(one), len(class_names))
                for one in in_batches(pixels, n_at_once)
            ]
        )
    truth, predicted = labels.numpy(), probabilities.argmax(axis=1)
    shown = [_choose(truth, predicted, probabilities, i) for i in range(len(class_names))]
    averaged = [np.flatnonzero(truth == i)[:N_MEAN] for i in range(len(class_names))]
    chosen = np.unique(np.concatenate([*shown, *averaged])).astype(np.int64)
    found = attribute_all(
        model,
        normalise(pixels[torch.from_numpy(chosen)]),
        class_names,
        method=method,
        classes=torch.from_numpy(np.stack([truth[chosen], predicted[chosen]], axis=1)),
    )
    explained = dict(zip(chosen.tolist(), found, strict=True))

    def example(index: int) -> Example:
        said = int(predicted[index])
        picture = pixels[index].permute(1, 2, 0).numpy()
        sure = float(probabilities[index, said])
        one = explained[index]
        delta = None if one.deltas is None else float(one.deltas[SAID])
        change = None if one.changes is None else float(one.changes[SAID])
        label = int(truth[index])
        return Example(index, picture, one.maps[SAID], label, said, sure, delta, change)

    means = [mean_map([explained[index].maps[TRUE] for index in of.tolist()]) for of in averaged]
    empty = np.full(pixels.shape[2:], np.nan)
    return Gallery(
        method,
        found[0].layer,
        tuple(class_names),
        tuple(tuple(map(example, of.tolist())) for of in shown),
        np.stack([empty if mean is None else mean for mean, _ in means]),
        tuple(n for _, n in means),
        tuple(int(((truth == i) & (predicted == i)).sum()) for i in range(len(class_names))),
        tuple(int((truth == i).sum()) for i in range(len(class_names))),
        (*method_notes(METHODS[method]), *_sum_notes(explained, averaged, shown)),
    )


def _sum_notes(
    explained: Mapping[int, Attribution],
    averaged: Sequence[np.ndarray],
    shown: Sequence[np.ndarray],
) -> tuple[str, ...]:
    """One note for all maps in the gallery whose sum misses the change of their logit by much."""
    shares: dict[tuple[int, int], float] = {}  # of a right picture both maps are one
    for which, by_class in ((TRUE, averaged), (SAID, shown)):
        for index in np.concatenate(by_class).tolist():
            one = explained[index]
            if one.deltas is None or one.changes is None:
                return ()
            share = misses(one.deltas, one.changes)[which]
            shares[index, one.map_classes[which]] = float(share)
    large = [share for share in shares.values() if share > LARGEST_DELTA]
    if not large:
        return ()
    miss = "misses its" if len(large) == 1 else "miss their"
    return (
        f"of {len(shares)} maps {len(large)} {miss} sum by more than {100 * LARGEST_DELTA:.0f} %, "
        f"the worst by {100 * max(large):.0f} %",
    )


def mean_map(maps: Sequence[np.ndarray]) -> tuple[np.ndarray | None, int]:
    """The mean of the positive parts, each over its own maximum, and of how many maps it is.

    A map without a positive value has no part in it; None where no map has one.
    """
    positive = [np.clip(one, 0, None) / one.max() for one in maps if one.max() > 0]
    return (np.mean(positive, axis=0) if positive else None), len(positive)


def _choose(
    truth: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, label: int
) -> np.ndarray:
    """The first right ones, then the wrong ones that the network was surest of."""
    is_class = truth == label
    right = np.flatnonzero(is_class & (predicted == label))[:N_RIGHT]
    wrong = np.flatnonzero(is_class & (predicted != label))
    surest = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:N_WRONG]
    return np.concatenate([right, surest]).astype(np.int64)
