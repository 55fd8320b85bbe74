"""Divide images into train, validation and test, with no picture on two sides."""

from dataclasses import dataclass, field
from math import ceil, floor
from typing import Any

import numpy as np

from gradflow.data.audit import Audit

KINDS = ("grouped", "random")
_PARTS = ("train", "validation", "test", "set_aside", "contaminated", "near_contaminated")


def _nothing() -> np.ndarray:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Split:
    """Which image is for what: sorted int64 positions in the source.

    `set_aside` are exact copies beyond the first inside validation and test, so that each picture
    counts once there and a confidence interval over them is honest. `contaminated` are the test
    images with an exact twin in train, `near_contaminated` those with an exact or near one.
    """

    kind: str
    seed: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    set_aside: np.ndarray = field(default_factory=_nothing)
    contaminated: np.ndarray = field(default_factory=_nothing)
    near_contaminated: np.ndarray = field(default_factory=_nothing)

    def __post_init__(self) -> None:
        _check_kind(self.kind)
        for name in _PARTS:
            indices = getattr(self, name)
            if indices.ndim != 1 or indices.dtype != np.int64 or (np.diff(indices) <= 0).any():
                raise ValueError(f"Expected `{name}` to be sorted unique int64, but got {indices}.")
        for name in ("train", "validation", "test"):
            if not len(getattr(self, name)):
                raise ValueError(f"Expected images in `{name}`, but got none. Use more images.")
        evaluated = np.union1d(self.validation, self.test)
        if len(both := np.intersect1d(self.train, evaluated)):
            raise ValueError(f"Expected no training image in other parts, but got {both} in both.")
        if not self.validation_is_test and len(np.intersect1d(self.validation, self.test)):
            raise ValueError("Expected no image in both validation and test, but got some.")

    @property
    def validation_is_test(self) -> bool:
        """Whether the choice of the best epoch looks at the test images, as in the original."""
        return np.array_equal(self.validation, self.test)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: the counts to read, the positions to use."""
        parts = {name: getattr(self, name) for name in _PARTS}
        return {
            "kind": self.kind,
            "seed": self.seed,
            "validation_is_test": self.validation_is_test,
            "counts": {name: len(indices) for name, indices in parts.items()},
            "indices": {name: indices.tolist() for name, indices in parts.items()},
        }


def split(
    audit: Audit,
    labels: np.ndarray,
    *,
    kind: str = "grouped",
    seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
) -> Split:
    """Divide the usable images of an audit. `labels` (n,) int64, as in the source.

    `"grouped"`: twins, exact or near, stay together; stratified by class; the fractions are of
    such groups, not of files. `"random"`: the original study's split, which takes files at random,
    ignores twins and classes, and has no validation part of its own: there `validation` is `test`
    and `val_fraction` has no effect.

    Raises ValueError for fractions that leave nothing to train on, and for a class with too few
    distinct pictures to be in every part.
    """
    _check_kind(kind)
    if labels.shape != (audit.n_images,):
        raise ValueError(f"Expected {audit.n_images} labels, but got shape {labels.shape}.")
    _check_fractions(val_fraction, test_fraction)
    if not audit.usable.any():
        raise ValueError(
            f"Expected readable images in {audit.name}, but all {len(audit.bad)} files are "
            f"unreadable. The first: {audit.bad[0].key}: {audit.bad[0].reason}."
        )
    if kind == "random":
        return _random(audit, seed, test_fraction)
    return _grouped(audit, labels, seed, val_fraction, test_fraction)


def _random(audit: Audit, seed: int, test_fraction: float) -> Split:
    from sklearn.model_selection import train_test_split

    usable = np.flatnonzero(audit.usable)
    if len(usable) < 2:
        raise ValueError(f"Expected at least 2 usable images, but got {len(usable)}. Add some.")
    train, test = train_test_split(usable, test_size=test_fraction, random_state=seed)
    return _split(audit, "random", seed, train, test, test)


def _grouped(
    audit: Audit, labels: np.ndarray, seed: int, val_fraction: float, test_fraction: float
) -> Split:
    from sklearn.model_selection import train_test_split

    unit_labels = _majority(audit, labels)
    n_units = len(unit_labels)
    n_test, n_val = ceil(test_fraction * n_units), ceil(val_fraction * n_units)
    _check_classes(audit, unit_labels, n_val, n_test)
    rest, test = train_test_split(
        np.arange(n_units), test_size=n_test, random_state=seed, stratify=unit_labels
    )
    train, validation = train_test_split(
        rest, test_size=n_val, random_state=seed, stratify=unit_labels[rest]
    )
    parts = [np.flatnonzero(np.isin(audit.near, part)) for part in (train, validation, test)]
    return _split(audit, "grouped", seed, parts[0], *(_once(audit, p) for p in parts[1:]))


def _split(
    audit: Audit,
    kind: str,
    seed: int,
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
) -> Split:
    used = np.concatenate([train, validation, test])
    return Split(
        kind=kind,
        seed=seed,
        train=np.sort(train),
        validation=np.sort(validation),
        test=np.sort(test),
        set_aside=np.setdiff1d(np.flatnonzero(audit.usable), used),
        contaminated=np.sort(test[np.isin(audit.content[test], audit.content[train])]),
        near_contaminated=np.sort(test[np.isin(audit.near[test], audit.near[train])]),
    )


def _majority(audit: Audit, labels: np.ndarray) -> np.ndarray:
    """(groups,) the label that most images of a near group bear; the lower one of a tie."""
    votes = np.zeros((audit.n_near_distinct, len(audit.class_names)), dtype=np.int64)
    np.add.at(votes, (audit.near[audit.usable], labels[audit.usable]), 1)
    majority: np.ndarray = votes.argmax(axis=1)
    return majority


def _once(audit: Audit, indices: np.ndarray) -> np.ndarray:
    """The first image of each distinct picture among the images at `indices`."""
    firsts = np.unique(audit.content[indices], return_index=True)[1]
    return indices[firsts]


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"Expected the split to be {' or '.join(KINDS)}, but got {kind!r}.")


def _check_fractions(val_fraction: float, test_fraction: float) -> None:
    if not (0 < val_fraction < 1 and 0 < test_fraction < 1 and val_fraction + test_fraction < 1):
        raise ValueError(
            "Expected val_fraction and test_fraction above 0 with a sum below 1, so that "
            f"something is left to train on, but got {val_fraction} and {test_fraction}."
        )


def _check_classes(audit: Audit, unit_labels: np.ndarray, n_val: int, n_test: int) -> None:
    """Every class must be in every part, whatever the seed: otherwise its score is undefined."""
    n = len(unit_labels)
    test_share, val_share = n_test / n, n_val / max(n - n_test, 1)

    def is_enough(count: int) -> bool:  # the stratified split rounds either way
        rest = count - ceil(count * test_share)
        n_train = rest - ceil(rest * val_share)
        return min(floor(count * test_share), floor(rest * val_share), n_train) >= 1

    counts = np.bincount(unit_labels, minlength=len(audit.class_names))
    few = [
        f"{name} ({count})"
        for name, count in zip(audit.class_names, counts, strict=True)
        if not is_enough(int(count))
    ]
    if few:
        needed = next((count for count in range(3, 10 * n + 3) if is_enough(count)), None)
        twins = "" if audit.near_bits is None else f" (near twins: {audit.near_bits} bits or less)"
        least = "more" if needed is None else f"at least {needed}"
        raise ValueError(
            f"Expected {least} distinct pictures per class, so that each class is in "
            f"train, validation and test, but got {', '.join(few)}, where twins count once{twins}. "
            "Add pictures, leave the class out, use larger fractions, or keep only exact copies "
            "together (`--twins exact`)."
        )
