"""From picture files to maps on disk: read what can be read, explain it, save it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from gradflow.data import BadImage, normalise, read_image, to_uint8
from gradflow.data.files import count_endings, endings_text, files_in, is_picture
from gradflow.data.photos import printable
from gradflow.files import DamagedFile, read_json, whole
from gradflow.present import plots
from gradflow.present.saliency.attribution import Attribution, attribute_all
from gradflow.present.saliency.methods import METHODS, per_batch

SCORES = "saliency.json"  # of a folder; by this file a later call knows what it must not read
ENDING = "-saliency"  # of the name of what is written, where the caller gives none


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture at the size of the networks: `pixels` (3, S, S) uint8."""

    name: str  # of its outputs
    path: Path
    pixels: Tensor

    @property
    def photo(self) -> np.ndarray:
        """(S, S, 3), as a plot takes it."""
        return np.asarray(self.pixels.permute(1, 2, 0).numpy())


def find_pictures(path: Path) -> list[Path]:
    """The file, or all files in the folder that are named like pictures, also deeper ones.

    What an earlier call wrote is left out, unless the folder itself is what it wrote. Raises
    FileNotFoundError where there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"Expected a picture or a folder, but there is nothing at {path}.")
    files = files_in(path)
    written = {one.parent for one in files if one.name == SCORES} - {path}
    found = [
        one
        for one in files
        if is_picture(one) and written.isdisjoint(one.parents) and not _is_written(one)
    ]
    if not found:
        others = endings_text(count_endings(one for one in files if not is_picture(one)))
        raise FileNotFoundError(
            f"Expected pictures in {path}, apart from what an earlier call wrote, but got "
            f"{others or 'no files'}. Give a picture, or the folder that holds them."
        )
    return found


def _is_written(picture: Path) -> bool:
    """Whether it is the picture of an earlier call for one file: its scores stand beside it."""
    return picture.stem.endswith(ENDING) and picture.with_suffix(".json").exists()


def output_path(image: Path, asked: Path | None) -> Path:
    """The picture to write for the file `image`, or the folder to write for the folder `image`.

    >>> output_path(Path("x.jpg"), None).name, output_path(Path("x.jpg"), Path("maps")).name
    ('x-saliency.png', 'maps.png')
    """
    if image.is_dir():
        return asked or Path(f"{printable(image.resolve().name)}{ENDING}")
    if asked is None:
        return Path(f"{printable(image.stem)}{ENDING}.png")
    return plots.picture_path(asked)


class _Scores(TypedDict):
    method: str
    pictures: list[Any]


def refuse_to_replace(image: Path, output: Path) -> None:
    """Refuse to write over what no earlier call wrote, such as the photograph: ValueError."""
    if image.is_dir():
        scores = output / SCORES
        taken = [output] if output.is_dir() and any(output.iterdir()) else []
    else:
        scores = output.with_suffix(".json")
        taken = [path for path in (output, scores) if path.exists()]
    try:
        read_json(scores, _Scores, "scores", "")
    except (OSError, DamagedFile):
        if taken:
            raise ValueError(
                f"Expected a new --output, or that of an earlier call, but {taken[0]} is there and "
                "was not written by one. Give another one."
            ) from None


def output_names(paths: Sequence[Path], folder: Path) -> list[str]:
    """A name for each: its place in the folder with - for /; with its ending where two are alike.

    >>> output_names([Path("f/a/x.jpg"), Path("f/y.jpg"), Path("f/y.png")], Path("f"))
    ['a-x', 'y-jpg', 'y-png']
    """
    whole = [printable("-".join(path.relative_to(folder).parts)) for path in paths]
    short = [name.rpartition(".")[0] for name in whole]
    times = Counter(short)
    return [
        one if times[one] == 1 else full.replace(".", "-")
        for one, full in zip(short, whole, strict=True)
    ]


def read_pictures(
    paths: Iterable[Path], names: Iterable[str], size: int
) -> Iterator[Picture | BadImage]:
    """Each picture at `size` px, or why it cannot be read."""
    for path, name in zip(paths, names, strict=True):
        try:
            yield Picture(name, path, to_uint8(read_image(path), size))
        except BadImage as bad:
            yield bad


def explain(
    networks: Mapping[str, nn.Module],
    pictures: Iterable[Picture | BadImage],
    class_names: Sequence[str],
    *,
    method: str,
    n_classes: int | None,
    notes: Mapping[str, str | None] | None = None,
) -> Iterator[tuple[Picture, dict[str, Attribution]] | BadImage]:
    """What each network says of each picture, in their order; some pictures at a time.

    `notes` are what the picture is to say of a network besides, such as the checks that failed.
    """
    pictures = iter(pictures)
    for first in pictures:
        some = [first, *islice(pictures, _at_once(first, method) - 1)]
        readable = [one for one in some if isinstance(one, Picture)]
        found = {
            name: iter(
                attribute_all(
                    model, to_batch(readable), class_names, method=method, n_classes=n_classes,
                    note=(notes or {}).get(name),
                )
            )
            for name, model in networks.items()
            if readable
        }  # fmt: skip
        for one in some:
            if isinstance(one, Picture):
                yield one, {name: next(results) for name, results in found.items()}
            else:
                yield one


def _at_once(picture: Picture | BadImage, method: str) -> int:
    """As many as go through the network; where each takes many passes one, to be shown sooner."""
    if isinstance(picture, BadImage):
        return 1
    return max(1, per_batch(picture.pixels.unsqueeze(0)) // METHODS[method].passes)


def to_batch(pictures: Sequence[Picture]) -> Tensor:
    """(B, 3, S, S), normalised as in training."""
    return normalise(torch.stack([picture.pixels for picture in pictures]))


def saliency_figure(photo: np.ndarray, results: Mapping[str, Attribution], path: Path) -> Path:
    """Write one picture: a row of maps over `photo`, (S, S, 3) uint8, for each network."""
    return plots.save(plots.saliency_grid(np.asarray(photo), results), path)


def save_maps(results: Mapping[str, Attribution], base: Path) -> dict[str, Path]:
    """One .npy per network beside the picture `base`: (n_maps, S, S) float32, as computed."""
    paths = {name: base.with_name(f"{base.stem}-{name}.npy") for name in results}
    base.parent.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        with whole(paths[name]) as unfinished:
            np.save(unfinished, result.maps.astype(np.float32), allow_pickle=False)
    return paths
