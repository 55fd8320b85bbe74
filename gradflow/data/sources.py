"""Where labelled images come from: digits, a folder, a CSV beside images, torchvision by name."""

import difflib
import hashlib
import importlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gradflow.data.folders import Listing, list_folder, list_table
from gradflow.data.photos import BadImage, printable, read_image
from gradflow.data.tables import TABLE_SUFFIXES
from gradflow.typed import shown

PHOTO_SIZE = 224  # px, the side at which the original study and most published ResNets train
DIGIT_SIZE = 8  # px, their own: with the small stem an epoch takes seconds on a CPU


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, eq=False)
class Source:
    """Labelled images, not yet decoded: `read(i)` decodes image `i` (RGB, or it raises BadImage).

    `keys` are unique names: a path relative to the data folder, or like `digits/0001`.
    `labels` (n,) int64 are positions in `class_names`. `image_size` (px) is the side to train at
    when the user names none. `mirror` says whether a mirrored image keeps its class, which is
    false for digits. `missing` files are labelled but not there; `unlabelled` are there only.
    `unread` counts the files beside them that are no pictures, by ending; `labels_from` says which
    table was read, and how. `read` may be called from several threads at once.
    """

    name: str
    class_names: tuple[str, ...]
    keys: tuple[str, ...]
    labels: np.ndarray
    read: Callable[[int], Image.Image]
    image_size: int
    mirror: bool
    missing: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    unread: Mapping[str, int] = field(default_factory=dict)
    labels_from: str = ""

    def __post_init__(self) -> None:
        n = len(self.keys)
        if n == 0:
            raise ValueError(f"Expected images in {self.name}, but got none. Check the path.")
        if len(self.class_names) < 2:
            raise ValueError(
                f"Expected at least two classes in {self.name}, but got {list(self.class_names)}. "
                "Put the images of each class into its own folder, or label them in a CSV."
            )
        if wrong := [name for name in self.class_names if _CONTROL.search(name)]:
            raise ValueError(
                f"Expected printable class names in {self.name}, but got "
                f"{shown(wrong[0])}. Rename the class."
            )
        if len(set(self.keys)) != n:
            twice = next(key for key, count in Counter(self.keys).items() if count > 1)
            raise ValueError(
                f"Expected different images in {self.name}, but got {twice} twice. Name it once."
            )
        if self.labels.shape != (n,) or self.labels.dtype != np.int64:
            got = f"{self.labels.dtype} {self.labels.shape}"
            raise ValueError(f"Expected int64 labels of shape ({n},), but got {got}.")
        if self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            raise ValueError(
                f"Expected labels from 0 to {len(self.class_names) - 1}, but got "
                f"{self.labels.min()} to {self.labels.max()}."
            )


def keys_sha256(keys: Sequence[str]) -> str:
    """Of the keys of all images in their order, by which a split counts them."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def open_source(data: str | Path, *, download: bool = False, allow_outside: bool = False) -> Source:
    """Find labelled images. Nothing is decoded yet, so this takes a moment only.

    `data` is, in this order: `"digits"`, scikit-learn's 1,797 handwritten digits; a table (CSV)
    with the columns filename,label or others that say as much; a folder with one such table; a
    folder of class folders; or the name
    of a torchvision data set, in any case. The labelled parts of a torchvision set (train and
    test, also val where there is one) come as one, since gradflow makes its own split. They are
    read from `$GRADFLOW_DATA`, by default `~/.cache/gradflow/data`, and fetched into it only with
    `download=True`. Classes are in sorted order (a torchvision set keeps its own order). The file
    names of a table stay inside its folder, unless `allow_outside`.

    Raises ValueError or FileNotFoundError with what was expected, what is there, and what to do.

    >>> source = open_source("digits")
    >>> len(source.keys), source.class_names[:3], source.keys[0], source.read(0).size
    (1797, ('0', '1', '2'), 'digits/0001', (8, 8))
    """
    if data == "digits":
        return _digits()
    path = _path(str(data))
    if path.is_dir():
        return _photos(list_folder(path.resolve(), allow_outside=allow_outside))
    if path.is_file():
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise ValueError(
                f"Expected a folder or a CSV file, but got the file {path}. Pass the folder "
                "that holds the images of all classes."
            )
        return _photos(list_table(path.resolve(), allow_outside=allow_outside))
    name = str(data).lower().replace("-", "").replace("_", "")
    if name in ZOO:
        return _torchvision(name, download)
    close = difflib.get_close_matches(name, ["digits", *ZOO], n=1)
    raise FileNotFoundError(
        f"Expected `digits`, an existing folder or CSV file, or one of {', '.join(ZOO)}, but got "
        f"{shown(str(data))}. " + (f"Did you mean {close[0]}?" if close else "Check the path.")
    )


def _path(data: str) -> Path:
    """A path that can be asked about. Raises ValueError, as for a user whom nobody knows."""
    try:
        path = Path(data).expanduser()
        path.exists()
    except (RuntimeError, ValueError, OSError) as error:  # ~nosuchuser, a NUL, a name too long
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"Expected the path of images, but got {shown(data)}: {reason}") from None
    if not data.strip():
        raise ValueError("Expected the path or the name of images, but got an empty one.")
    return path


def _digits() -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # scikit-learn counts from 0 to 16
    return Source(
        name="digits",
        class_names=tuple(str(name) for name in bunch.target_names),
        keys=tuple(f"digits/{i:04d}" for i in range(1, len(grey) + 1)),
        labels=bunch.target.astype(np.int64),
        read=lambda i: Image.fromarray(grey[i]).convert("RGB"),
        image_size=DIGIT_SIZE,
        mirror=False,
    )


def _photos(listing: Listing) -> Source:
    def keys(paths: Sequence[Path]) -> tuple[str, ...]:
        names = [Path(os.path.relpath(path, listing.folder)).as_posix() for path in paths]
        texts = [printable(name) for name in names]
        return tuple(texts if len(set(texts)) == len(texts) else names)

    return Source(
        name=printable(listing.folder.name),
        class_names=listing.class_names,
        keys=keys(listing.paths),
        labels=np.array(listing.labels, dtype=np.int64),
        read=lambda i: read_image(listing.paths[i]),
        image_size=PHOTO_SIZE,
        mirror=True,
        missing=keys(listing.missing),
        unlabelled=keys(listing.unlabelled),
        unread=listing.unread,
        labels_from=listing.labels_from,
    )


def _torchvision(name: str, download: bool) -> Source:
    entry = ZOO[name]
    root = Path(os.environ.get("GRADFLOW_DATA") or "~/.cache/gradflow/data").expanduser()
    build = getattr(importlib.import_module("torchvision.datasets"), entry.dataset)
    parts = [_part(name, build, root, dict(kwargs), download) for kwargs in entry.parts]
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    labels = np.concatenate([_labels(part) for part in parts])

    def read(i: int) -> Image.Image:
        part = int(np.searchsorted(offsets, i, side="right")) - 1
        try:
            image: Image.Image = parts[part][i - int(offsets[part])][0]
            return image.convert("RGB")
        except Exception as error:  # whatever a decoder raises on a broken file
            raise BadImage(f"{name}/{i:06d}", str(error)) from error

    return Source(
        name=name,
        class_names=_class_names(parts[0], int(labels.max()) + 1),
        keys=tuple(
            f"{name}/part{k}/{i:06d}"
            for k, (start, stop) in enumerate(pairwise(offsets))
            for i in range(stop - start)
        ),
        labels=labels,
        read=read,
        image_size=entry.image_size,
        mirror=entry.mirror,
    )


def _part(
    name: str, build: Callable[..., Any], root: Path, kwargs: dict[str, Any], download: bool
) -> Any:
    """One part of a torchvision set. It is fetched only if asked to and if it is not there."""
    try:
        return build(root, download=False, **kwargs)
    except (RuntimeError, FileNotFoundError) as error:
        if not download:
            raise FileNotFoundError(
                f"Expected the torchvision data set {name} in {root}, but got: "
                f"{str(error).rstrip('. ')}. Add --download to fetch it, or set GRADFLOW_DATA to "
                "the folder that holds it."
            ) from error
    root.mkdir(parents=True, exist_ok=True)
    try:
        return build(root, download=True, **kwargs)
    except (RuntimeError, OSError) as error:  # no network is a URLError, which is an OSError
        raise OSError(
            f"Expected to fetch the torchvision data set {name} into {root}, but got: "
            f"{str(error).rstrip('. ')}. Check the network and the free space, or put its files "
            "there by hand."
        ) from error


def _labels(part: Any) -> np.ndarray:
    """All labels of a torchvision set without decoding an image: their place differs by set."""
    for place in ("targets", "labels", "_labels", "y"):
        if hasattr(part, place):
            return np.asarray(getattr(part, place), dtype=np.int64)
    return np.array([label for _, label in part._samples], dtype=np.int64)


def _class_names(part: Any, n_classes: int) -> tuple[str, ...]:
    names = getattr(part, "classes", None) or getattr(part, "categories", None)
    if names is None:  # SVHN and GTSRB have numbers only
        return tuple(str(label) for label in range(n_classes))
    return tuple(name if isinstance(name, str) else name[0] for name in names)


@dataclass(frozen=True)
class ZooEntry:
    """A torchvision class, the keyword arguments of each labelled part, and how to train on it."""

    dataset: str
    parts: tuple[dict[str, object], ...]
    image_size: int = 224  # px
    mirror: bool = True


def _splits(*names: str) -> tuple[dict[str, object], ...]:
    return tuple({"split": name} for name in names)


_TRAIN_AND_TEST: tuple[dict[str, object], ...] = ({"train": True}, {"train": False})

# A mirrored digit, letter or traffic sign ("keep right") is another class or none.
ZOO = {
    "cifar10": ZooEntry("CIFAR10", _TRAIN_AND_TEST, 32),
    "cifar100": ZooEntry("CIFAR100", _TRAIN_AND_TEST, 32),
    "fashionmnist": ZooEntry("FashionMNIST", _TRAIN_AND_TEST, 32),
    "mnist": ZooEntry("MNIST", _TRAIN_AND_TEST, 32, mirror=False),
    "kmnist": ZooEntry("KMNIST", _TRAIN_AND_TEST, 32, mirror=False),
    "usps": ZooEntry("USPS", _TRAIN_AND_TEST, 32, mirror=False),
    "svhn": ZooEntry("SVHN", _splits("train", "test"), 32, mirror=False),
    "gtsrb": ZooEntry("GTSRB", _splits("train", "test"), 32, mirror=False),
    "eurosat": ZooEntry("EuroSAT", ({},), 64),
    "stl10": ZooEntry("STL10", _splits("train", "test"), 96),
    "caltech101": ZooEntry("Caltech101", ({},)),
    "caltech256": ZooEntry("Caltech256", ({},)),
    "country211": ZooEntry("Country211", _splits("train", "valid", "test")),
    "dtd": ZooEntry("DTD", _splits("train", "val", "test")),
    "fgvcaircraft": ZooEntry("FGVCAircraft", _splits("trainval", "test")),
    "flowers102": ZooEntry("Flowers102", _splits("train", "val", "test")),
    "food101": ZooEntry("Food101", _splits("train", "test")),
    "imagenette": ZooEntry("Imagenette", _splits("train", "val")),
    "oxfordiiitpet": ZooEntry("OxfordIIITPet", _splits("trainval", "test")),
    "sun397": ZooEntry("SUN397", ({},)),
}
