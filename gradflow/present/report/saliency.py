"""The saliency maps of the runs: the pictures, how to read them, and what the checks said."""

import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from gradflow.files import whole
from gradflow.present.section import Chart
from gradflow.training.rundir import RunDir

MEAN = "mean"  # what RunDir.saliency_figure calls the picture of all networks
WIDEST = 1600  # pixels of a picture in the page, which is mailed: a gallery as PNG is 1 MB
QUALITY = 85
TITLES = {"gradcam": "Grad-CAM", "smoothgrad": "SmoothGrad"}
MEAN_CAPTION = (
    "Strong colour is where the score of the class depends on the picture: the mean of the maps "
    "over the first test pictures of the class, all networks on one scale."
)
GALLERY_CAPTION = (
    "A row for each class. Strong colour is where the score of the predicted class depends on the "
    "picture; a framed picture was taken for another class."
)
NO_MAPS = (
    "No maps were made of these runs. `gradflow saliency --split test --run RUN` makes them, RUN "
    "being the folder of a run; then write this report again."
)


@dataclass(frozen=True)
class Maps:
    """A method on one network: the layer that it reads, and what its checks found."""

    method: str
    network: str
    layer: str | None = None
    trust: Mapping[str, Any] | None = None  # see gradflow.present.saliency.trust; None if unknown

    @property
    def answer(self) -> str:
        """Whether the maps can be believed, in a sentence."""
        who = f"{self.method}{f' at {self.layer}' if self.layer else ''} on {self.network}"
        if self.trust is None:
            return f"No check of {who} is known."
        checks = self.trust["checks"]
        failed, open_ = (
            ", ".join(
                name.replace("_", " ") for name, one in checks.items() if one["passed"] is as_
            )
            for as_ in (False, None)
        )
        not_measured = f" Could not be measured: {open_}." if open_ else ""
        if failed:
            return f"{who} fails: {failed}.{not_measured}"
        if all(one["passed"] is None for one in checks.values()):
            return f"{who} could not be checked."
        return f"{who} passes its checks.{not_measured}"

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"answer": self.answer}


@dataclass(frozen=True, kw_only=True)
class SaliencyPicture(Chart):
    """One picture of `gradflow saliency --split test`, on white paper and maybe on dark.

    No two pictures of a report share the key, which is the name of the copies.
    """

    path: Path  # the PNG on white paper; the others stand beside it
    maps: tuple[Maps, ...]  # of the networks in it

    @property
    def is_drawn(self) -> bool:
        return True

    @property
    def dark(self) -> Path | None:
        """The PNG on dark paper, which older runs have not."""
        path = self.path.with_stem(f"{self.path.stem}-dark")
        return path if path.exists() and not path.is_symlink() else None

    def copy_to(self, folder: Path) -> None:
        """All its files, under `key`."""
        folder.mkdir(parents=True, exist_ok=True)
        for ending in (".png", ".svg", "-dark.png", "-dark.svg"):
            source = self.path.with_name(f"{self.path.stem}{ending}")
            copy = folder / f"{self.key}{ending}"
            if source.exists() and not source.is_symlink() and source != copy:
                with whole(copy) as unfinished:
                    shutil.copyfile(source, unfinished)


def saliency_pictures(runs: Sequence[RunDir]) -> tuple[SaliencyPicture, ...]:
    """Those of all runs, the default method first."""
    found: dict[str, SaliencyPicture] = {}
    for run in runs:
        networks = [network.name for network in run.networks()]
        for path in run.saliency_figures():
            named = _method_and_shows(path, networks)
            if named is not None:  # else it shows no network that this run still has
                # A copy in the first run's figures must not pass for a map of that run.
                name = path.stem if run == runs[0] else f"{run.path.name}-{path.stem}"
                found[name] = _picture(name, path, *named, _maps(run, *named))
    return tuple(found.values())


def _picture(
    key: str, path: Path, method: str, shows: str, maps: tuple[Maps, ...]
) -> SaliencyPicture:
    """`shows` is `MEAN`, or the network whose gallery it is."""
    name = TITLES.get(method, method.replace("-", " ").capitalize())
    of = f" of {' and '.join(one.network for one in maps)}" if maps else ""
    what = f"the mean map of each class{of}" if shows == MEAN else f"what {shows} looks at"
    how = MEAN_CAPTION if shows == MEAN else GALLERY_CAPTION
    caption = " ".join((how, *(one.answer for one in maps)))
    return SaliencyPicture(key, "saliency", f"{name}: {what}", caption, path=path, maps=maps)


def maps_of(pictures: Sequence[SaliencyPicture]) -> list[Maps]:
    """Each method on each network once."""
    found = {(one.method, one.network): one for picture in pictures for one in picture.maps}
    return list(found.values())


def webp(path: Path) -> bytes:
    """The picture as it stands in the page: small enough to be mailed."""
    with Image.open(path, formats=("PNG",)) as picture:
        shown = picture.convert("RGB")
    shown.thumbnail((WIDEST, max(WIDEST, shown.height)))
    file = io.BytesIO()
    shown.save(file, "WEBP", quality=QUALITY)
    return file.getvalue()


def _method_and_shows(path: Path, networks: Sequence[str]) -> tuple[str, str] | None:
    name = path.stem.removeprefix("saliency-")
    for shows in (MEAN, *networks):
        if name.endswith(f"-{shows}"):
            return name.removesuffix(f"-{shows}"), shows
    return None


def _maps(run: RunDir, method: str, shows: str) -> tuple[Maps, ...]:
    content = run.saliency(method) or {}
    networks, trust = content.get("networks", {}), content.get("trust", {})
    return tuple(
        Maps(method, name, networks.get(name, {}).get("layer"), trust.get(name))
        for name in (networks if shows == MEAN else (shows,))
    )
