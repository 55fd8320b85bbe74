"""Look at every image once before anyone trains: bad files, twins, conflicting labels."""

import os
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from gradflow.data.photos import BadImage
from gradflow.data.sources import Source
from gradflow.data.twins import (
    NEAR_TWIN_BITS,
    NEAR_TWIN_SIDE,
    by_first_appearance,
    content_hash,
    group_near,
    perceptual_hash,
)


@dataclass(frozen=True)
class BadFile:
    """An image that cannot be used, and why."""

    key: str
    reason: str


@dataclass(frozen=True, eq=False)
class Audit:
    """What is in a source of n images, found by decoding each of them.

    `sizes` (n, 2) width and height in px; `usable` (n,) bool. `content` (n,) numbers the distinct
    pictures: equal for exact twins (same size and pixels). `near` (n,) numbers groups in which
    exact or near twins connect the images. For a bad image they hold 0, False, -1 and -1.
    `bad` lists the unreadable files, then the labelled ones that do not exist. `unread` and
    `labels_from` as in Source.
    """

    name: str
    class_names: tuple[str, ...]
    keys: tuple[str, ...]
    labels: np.ndarray
    sizes: np.ndarray
    usable: np.ndarray
    content: np.ndarray
    near: np.ndarray
    near_bits: int | None = NEAR_TWIN_BITS
    bad: tuple[BadFile, ...] = ()
    unlabelled: tuple[str, ...] = ()
    unread: Mapping[str, int] = field(default_factory=dict)
    labels_from: str = ""

    def __post_init__(self) -> None:
        n = len(self.keys)
        want = {"labels": (n,), "sizes": (n, 2), "usable": (n,), "content": (n,), "near": (n,)}
        for field_name, shape in want.items():
            got = getattr(self, field_name).shape
            if got != shape:
                raise ValueError(f"Expected `{field_name}` of shape {shape}, but got {got}.")

    @property
    def n_images(self) -> int:
        """Labelled images that exist, readable or not."""
        return len(self.keys)

    @property
    def n_distinct(self) -> int:
        """Distinct pictures among the readable images."""
        return int(self.content.max(initial=-1)) + 1

    @property
    def n_near_distinct(self) -> int:
        """Groups of pictures that are not even near twins of one another."""
        return int(self.near.max(initial=-1)) + 1

    @property
    def class_counts(self) -> dict[str, int]:
        """Labelled images per class, bad ones and twins included."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        return {name: int(count) for name, count in zip(self.class_names, counts, strict=True)}

    @property
    def exact_twins(self) -> tuple[tuple[str, ...], ...]:
        """Groups of keys whose images are equal pixel by pixel."""
        return tuple(tuple(self.keys[i] for i in group) for group in _groups(self.content))

    @property
    def near_twins(self) -> tuple[tuple[str, ...], ...]:
        """Groups of distinct pictures that look the same, one key for each picture."""
        firsts = np.unique(self.content, return_index=True)[1]
        near = np.full(self.n_images, -1)
        near[firsts] = self.near[firsts]
        return tuple(tuple(self.keys[i] for i in group) for group in _groups(near))

    @property
    def conflicts(self) -> tuple[dict[str, str], ...]:
        """Groups of exact twins that bear different labels: key to class name."""
        return self._conflicts(self.content)

    @property
    def near_conflicts(self) -> tuple[dict[str, str], ...]:
        """Groups of exact or near twins that bear different labels: key to class name."""
        return self._conflicts(self.near)

    def _conflicts(self, numbers: np.ndarray) -> tuple[dict[str, str], ...]:
        return tuple(
            {self.keys[i]: self.class_names[self.labels[i]] for i in group}
            for group in _groups(numbers)
            if len(set(self.labels[group].tolist())) > 1
        )

    def to_json(self) -> dict[str, object]:
        """The findings in plain JSON types, sizes summed up."""
        return {
            "name": self.name,
            "n_images": self.n_images,
            "n_usable": int(self.usable.sum()),
            "n_distinct": self.n_distinct,
            "n_near_distinct": self.n_near_distinct,
            "near_bits": self.near_bits,
            "class_counts": self.class_counts,
            "sizes": _summary(self.sizes[self.usable]),
            "bad": [{"key": file.key, "reason": file.reason} for file in self.bad],
            "unlabelled": list(self.unlabelled),
            "unread": dict(self.unread),
            "labels_from": self.labels_from,
            "exact_twins": [list(group) for group in self.exact_twins],
            "near_twins": [list(group) for group in self.near_twins],
            "conflicts": list(self.conflicts),
            "near_conflicts": list(self.near_conflicts),
        }


def audit(
    source: Source,
    on_image: Callable[[int, Image.Image], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    near_bits: int | None = NEAR_TWIN_BITS,
) -> Audit:
    """Decode every image of a source exactly once and report what is wrong, never raising for it.

    `on_image(i, image)` gets each readable image; it is called from several threads, in no fixed
    order, and each image is let go after it. `progress(n_done, n)` is called from this thread.
    `near_bits` is the largest distance of near twins; None looks for exact twins only, which
    suits images that all look alike (X-rays, spectrograms).
    """
    if near_bits is not None and not 0 <= near_bits <= 64:
        raise ValueError(f"Expected near_bits from 0 to 64, or None, but got {near_bits}.")
    n = len(source.keys)
    facts: list[_Facts] = []
    with closing(_look_at_all(source, on_image, near_bits is not None)) as looks:
        for fact in looks:
            facts.append(fact)
            if progress is not None:
                progress(len(facts), n)
    usable = np.array([not fact.reason for fact in facts])
    content, near = _twin_groups(facts, usable, near_bits)
    unreadable = [
        BadFile(key, fact.reason)
        for key, fact in zip(source.keys, facts, strict=True)
        if fact.reason
    ]
    return Audit(
        name=source.name,
        class_names=source.class_names,
        keys=source.keys,
        labels=source.labels,
        sizes=np.array([fact.size for fact in facts]),
        usable=usable,
        content=content,
        near=near,
        near_bits=near_bits,
        bad=(*unreadable, *(BadFile(key, "no such file") for key in source.missing)),
        unlabelled=source.unlabelled,
        unread=source.unread,
        labels_from=source.labels_from,
    )


@dataclass(frozen=True)
class _Facts:
    """What stays of an image after it was looked at; `reason` is empty for a good one."""

    reason: str = ""
    size: tuple[int, int] = (0, 0)
    content: bytes = field(default=b"", repr=False)
    perceptual: int | None = None


def _look_at_all(
    source: Source, on_image: Callable[[int, Image.Image], None] | None, is_near_wanted: bool
) -> Generator[_Facts, None, None]:
    """Facts in the order of the source. As many images are in memory as there are threads."""

    def look_at(i: int) -> _Facts:
        try:
            image = source.read(i)
        except BadImage as error:
            return _Facts(reason=error.reason)
        if on_image is not None:
            on_image(i, image)
        perceptual = perceptual_hash(image) if is_near_wanted else None
        return _Facts("", image.size, content_hash(image), perceptual)

    if is_near_wanted:  # imagehash imports SciPy late, which several threads must not do at once
        perceptual_hash(Image.new("L", (NEAR_TWIN_SIDE, NEAR_TWIN_SIDE)))
    # Closing this generator, after an error or Ctrl-C, cancels what is still in the queue.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as executor:
        yield from executor.map(look_at, range(len(source.keys)))


def _twin_groups(
    facts: list[_Facts], usable: np.ndarray, near_bits: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """`content` and `near` of an Audit. Near twins are looked for among distinct pictures only."""
    content = np.full(len(facts), -1, dtype=np.int64)
    digests = np.array([fact.content for fact in facts], dtype="S32")
    content[usable] = by_first_appearance(digests[usable])
    near = content.copy()
    if near_bits is None or not usable.any():
        return content, near
    distinct, firsts = np.unique(content[usable], return_index=True)
    originals = np.flatnonzero(usable)[firsts]
    hashes = [facts[i].perceptual for i in originals]
    hashed = np.array([value is not None for value in hashes])
    group = len(distinct) + np.arange(len(distinct))  # alone, unless the hashes say otherwise
    group[hashed] = group_near(
        np.array([value for value in hashes if value is not None], dtype=np.uint64), near_bits
    )
    near[usable] = by_first_appearance(group[content[usable]])
    return content, near


def _groups(numbers: np.ndarray) -> list[np.ndarray]:
    """Positions that share a number, for numbers (not -1) that come more than once."""
    order = np.argsort(numbers, kind="stable")
    order = order[numbers[order] >= 0]
    starts = np.flatnonzero(np.diff(numbers[order])) + 1
    return [group for group in np.split(order, starts) if len(group) > 1]


def _summary(sizes: np.ndarray) -> dict[str, dict[str, float]]:
    if not len(sizes):
        return {}
    return {
        side: {
            "min": int(values.min()),
            "median": float(np.median(values)),
            "max": int(values.max()),
        }
        for side, values in (("width", sizes[:, 0]), ("height", sizes[:, 1]))
    }
