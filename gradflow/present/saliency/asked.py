"""The networks of a run that are asked: loaded, checked, and asked about files or the test set."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from gradflow.data import BadImage
from gradflow.data.photos import printable
from gradflow.files import DamagedFile
from gradflow.present import plots
from gradflow.present.saliency.attribution import Attribution
from gradflow.present.saliency.gallery import Gallery, make_gallery
from gradflow.present.saliency.pictures import (
    Picture,
    explain,
    output_names,
    read_pictures,
    saliency_figure,
    save_maps,
    to_batch,
)
from gradflow.present.saliency.trust import Trust, check_method
from gradflow.training.config import TrainConfig
from gradflow.training.index import write_index
from gradflow.training.rundir import NetworkDir, RunDir, Weights
from gradflow.training.weights import build_network

LARGEST_PASS = 2 * 2**30  # bytes of outputs for one picture; a ResNet-34 takes 0.1 GiB at 224 px


@dataclass(frozen=True, eq=False)
class Networks:
    """Trained networks of one run, with what it takes to ask them."""

    config: TrainConfig
    class_names: tuple[str, ...]
    dirs: dict[str, NetworkDir]
    models: dict[str, nn.Module]

    @classmethod
    def load(cls, run: RunDir, which: Weights, seeds: Sequence[int] | None = None) -> Self:
        """Those of these seeds, by default of the first one that has weights.

        Raises FileNotFoundError where nothing is trained, ValueError for a seed that is not there.
        """
        trained = [one for one in run.networks() if one.weights(which).exists()]
        if not trained:
            raise FileNotFoundError(f"No trained network in {run.path}. Let it finish an epoch.")
        there = list(dict.fromkeys(one.seed for one in trained))
        asked = there[:1] if seeds is None else list(seeds)
        if missing := [seed for seed in asked if seed not in there]:
            raise ValueError(
                f"Expected seeds of {', '.join(map(str, there))}, which have trained networks, but "
                f"got {missing[0]}."
            )
        config, names = run.config(), tuple(run.data()["classes"])
        dirs = {one.name: one for one in trained if one.seed in asked}
        models = {}
        for name, one in dirs.items():
            models[name] = one.load_model(config, len(names), which)
            _refuse_nonfinite(models[name], one.weights(which))
        for arch in dict.fromkeys(one.arch for one in dirs.values()):
            _refuse_large_pass(arch, len(names), config)
        return cls(config, names, dirs, models)

    @property
    def image_size(self) -> int:
        assert self.config.image_size is not None, "a run's config is resolved"
        return self.config.image_size

    def check(self, images: Tensor, method: str) -> Iterator[tuple[str, Trust]]:
        """The trust in a method on each network; see `check_method`."""
        for name, model in self.models.items():
            yield (
                name,
                check_method(model, images, method, len(self.class_names), self._untrained(name)),
            )

    def _untrained(self, name: str) -> Callable[[int], nn.Module]:
        arch, n_classes = self.dirs[name].arch, len(self.class_names)
        return lambda seed: build_network(arch, n_classes, self.config, seed=seed).eval()


def _refuse_nonfinite(model: nn.Module, path: Path) -> None:
    """Whatever such a network says is NaN, or comes from the weights that are not: DamagedFile."""
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            advice = "Its training came to nothing: ask an earlier epoch, or train it anew."
            raise DamagedFile(path, "finite weights", f"{name} has NaN or infinity", advice)


def _refuse_large_pass(arch: str, n_classes: int, config: TrainConfig) -> None:
    """A config of somebody else can name pictures that fill the memory: ValueError.

    The pass is made without memory, to see what its outputs would take.
    """
    n_bytes, side = 0, config.image_size
    assert side is not None, "a run's config is resolved"

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal n_bytes
        n_bytes += 0 if list(module.children()) else output.nbytes

    with torch.device("meta"):
        model = build_network(arch, n_classes, config, seed=0).eval()
        for module in model.modules():
            module.register_forward_hook(count)
        model(torch.zeros(1, 3, side, side))
    if n_bytes > LARGEST_PASS:
        raise ValueError(
            f"Expected one picture in {arch} to take at most {LARGEST_PASS / 2**30:.0f} GiB, but "
            f"at {side} px it takes {n_bytes / 2**30:.0f}. Train with a smaller "
            "--image-size, or with --stem photo."
        )


def first_readable(networks: Networks, paths: Sequence[Path], n: int) -> Tensor | None:
    """The first `n` pictures that can be read, normalised; None where there is none."""
    sized = read_pictures(paths, map(str, paths), networks.image_size)
    found = list(islice((one for one in sized if isinstance(one, Picture)), n))
    return to_batch(found) if found else None


def explain_files(
    networks: Networks,
    paths: Sequence[Path],
    asked: Path,
    output: Path,
    *,
    method: str,
    n_classes: int | None,
    trust: Mapping[str, Trust],
) -> Iterator[tuple[dict[str, Attribution], dict[str, Any]] | BadImage]:
    """Explain the files, and save for each the picture and the maps of each network.

    `asked` is the file, and `output` then its picture, or the folder that holds the files, and
    `output` then the folder to write. Each gives what the networks say, and the same as JSON.
    """
    is_folder = asked.is_dir()
    names = output_names(paths, asked) if is_folder else [output.stem]
    pictures = read_pictures(paths, names, networks.image_size)
    notes = {name: one.note for name, one in trust.items()}
    for one in explain(
        networks.models, pictures, networks.class_names, method=method, n_classes=n_classes,
        notes=notes,
    ):  # fmt: skip
        if isinstance(one, BadImage):
            yield one
            continue
        picture, results = one
        path = output / f"{picture.name}.png" if is_folder else output
        maps = save_maps(results, path)
        saliency_figure(picture.photo, results, path)
        said = {name: one.to_json() | {"maps": str(maps[name])} for name, one in results.items()}
        image = printable(str(picture.path))
        yield results, {"image": image, "picture": str(path), "networks": said}


def first_of_each_class(labels: Tensor, n: int) -> Tensor:
    """Positions of `n` images that take turns through the classes.

    >>> first_of_each_class(torch.tensor([0, 0, 0, 1, 1, 2]), 4)
    tensor([0, 3, 5, 1])
    """
    turns = torch.zeros_like(labels)
    for label in sorted(set(labels.tolist())):
        is_class = labels == label
        turns[is_class] = torch.arange(int(is_class.sum()))
    order = sorted(range(len(labels)), key=lambda i: (int(turns[i]), int(labels[i])))
    return torch.tensor(order[:n], dtype=torch.int64)


def galleries(
    networks: Networks, pixels: Tensor, labels: Tensor, method: str, trust: Mapping[str, Trust]
) -> Iterator[tuple[str, Gallery]]:
    """The gallery of each network over the test set, with what failed the checks as a note."""
    for name, model in networks.models.items():
        found = make_gallery(model, pixels, labels, networks.class_names, method)
        note = trust[name].note if name in trust else None
        yield name, replace(found, notes=(*found.notes, note)) if note else found


def save_galleries(
    run: RunDir, method: str, found: Mapping[str, Gallery], trust: Mapping[str, Trust]
) -> tuple[dict[str, Any], list[Path]]:
    """Write the figures, the mean maps and the scores into the run.

    Each figure is written as SVG and PNG, on white paper and on dark. Returns the scores, and the
    PNGs on white paper.
    """
    draws = {"mean": partial(plots.mean_maps_grid, found)}
    draws |= {name: partial(plots.gallery_grid, name, one) for name, one in found.items()}
    paths = {shows: run.saliency_figure(method, shows) for shows in draws}
    for shows, path in paths.items():
        plots.save_in_both_themes(draws[shows], path.parent, path.stem)
    content = {
        "run": str(run.path),
        "method": method,
        "networks": {name: gallery.to_json() for name, gallery in found.items()},
        "trust": {name: one.to_json() for name, one in trust.items()},
    }
    run.save_saliency(method, content, {name: one.mean_maps for name, one in found.items()})
    write_index(run.path)
    return content, list(paths.values())


def saliency(
    run: RunDir | Path | str,
    image: Path | str,
    *,
    method: str = "gradcam",
    n_classes: int | None = None,
    weights: Weights = "best",
) -> dict[str, Attribution]:
    """By network of a run's first seed: what it says of a picture, and a map for each class.

    As `gradflow saliency IMAGE`, of which it writes nothing and checks no method. Raises BadImage,
    FileNotFoundError, ValueError.
    """
    networks = Networks.load(run if isinstance(run, RunDir) else RunDir.open(Path(run)), weights)
    picture = read_pictures([Path(image)], ["picture"], networks.image_size)
    found = next(
        explain(networks.models, picture, networks.class_names, method=method, n_classes=n_classes)
    )
    if isinstance(found, BadImage):
        raise found
    return found[1]
