"""`gradflow saliency`: what networks look at, in pictures or in the test set."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from gradflow.cli.console import progress, show, show_json, stderr
from gradflow.cli.data import data_of
from gradflow.cli.options import OK, Flag, Output

if TYPE_CHECKING:
    from torch import Tensor

    from gradflow.present.saliency.asked import Networks
    from gradflow.present.saliency.attribution import Attribution
    from gradflow.present.saliency.trust import Trust
    from gradflow.training.rundir import RunDir


def saliency(
    image: Path | None = None,
    *,
    split: Literal["test"] | None = None,
    run: Path | None = None,
    runs: Path = Path("runs"),
    seeds: str | None = None,
    weights: Literal["best", "last"] = "best",
    method: Literal[
        "gradcam",
        "gradient",
        "smoothgrad",
        "integrated-gradients",
        "occlusion",
        "guided-backprop",
    ] = "gradcam",
    classes: int | None = None,
    trust: int = 4,
    output: Output = None,
    json: Flag = False,
) -> int:
    """Show what each network of a run looks at: probabilities, and one map per class.

    Parameters
    ----------
    image
        A picture, or a folder of pictures: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, PGM.
    split
        Instead of pictures: the test set of the run, as a gallery and mean maps in its figures.
    run
        The run to take the networks from; by default the newest.
    runs
        The folder in which the newest run is looked for.
    seeds
        The seeds of the networks, separated by commas, or `all`; by default the first.
    weights
        Those of the epoch with the lowest validation loss, or of the last epoch.
    method
        Grad-CAM (at the last block with a map of 7×7 or more), or a method on the pixels.
    classes
        How many of the most probable classes to show; by default all, up to ten.
    trust
        On how many pictures the method itself is checked; 0 turns the checks off.
    output
        The picture's file (.png, also without an ending, .svg, .pdf, .jpg); for a folder, the
        folder to write. By default named after the image.
    json
        Print the scores as one JSON object on stdout.
    """
    from gradflow.present.saliency import METHODS
    from gradflow.present.saliency.asked import Networks
    from gradflow.present.saliency.pictures import output_path, refuse_to_replace
    from gradflow.training.rundir import RunDir

    if (image is None) == (split is None):
        raise ValueError(
            "Expected a picture or a folder, or --split test for the run's own test images, but "
            f"got {'neither' if image is None else 'both'}."
        )
    if trust < 0:
        raise ValueError(f"Expected `--trust` to be 0 or more pictures, but got {trust}.")
    if image is None and (output is not None or classes is not None):
        raise ValueError(
            "Expected neither --output nor --classes with --split: the gallery shows each "
            "picture's own classes and goes to the run's figures. Leave them out."
        )
    if image is not None and not image.exists():
        raise FileNotFoundError(f"Expected a picture or a folder, but there is nothing at {image}.")
    if image is not None:
        output = output_path(image, output)
        refuse_to_replace(image, output)
    chosen = RunDir.newest(runs) if run is None else RunDir.open(run)
    networks = Networks.load(chosen, weights, _seeds_of(seeds, chosen))
    if METHODS[method].warning is not None:
        stderr().print(f"Warning: {METHODS[method].warning}.", highlight=False, soft_wrap=True)
    if image is None:
        return _saliency_of_test_set(chosen, networks, method, trust, json)
    assert output is not None
    return _saliency_of_files(chosen, networks, image, output, method, classes, trust, json)


def _seeds_of(text: str | None, run: "RunDir") -> list[int] | None:
    if text is None:
        return None
    if text == "all":
        return list(run.config().seed_list)
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(
            f"Expected `--seeds` to be numbers separated by commas, or all, but got {text!r}."
        ) from None


def _saliency_of_files(
    run: "RunDir", networks: "Networks", image: Path, output: Path,
    method: str, n_classes: int | None, n_checked: int, as_json: bool,
) -> int:  # fmt: skip
    """Explain a picture, or all of a folder, of which a bad one does not stop the others."""
    from gradflow.data import BadImage
    from gradflow.files import write_json
    from gradflow.present import terminal
    from gradflow.present.saliency import views
    from gradflow.present.saliency.asked import explain_files, first_readable
    from gradflow.present.saliency.pictures import SCORES, find_pictures

    log = stderr()
    is_folder, paths = image.is_dir(), find_pictures(image)
    trust = _check_method(networks, first_readable(networks, paths, n_checked), method, log)
    first: dict[str, Attribution] = {}
    entries, left_out = [], []
    explained = explain_files(
        networks, paths, image, output, method=method, n_classes=n_classes, trust=trust
    )
    with progress(log, "pictures") as (bar, task):
        for one in bar.track(explained, total=len(paths), task_id=task):
            if not isinstance(one, BadImage):
                results, entry = one
                first = first or results
                entries.append(entry)
            elif is_folder:
                log.print(f"Left out: {one}", highlight=False, soft_wrap=True)
                left_out.append({"file": one.file, "reason": one.reason})
            else:
                raise one
    if not entries:
        raise ValueError(f"Expected a readable picture in {image}, but none can be read.")
    content = {
        "run": str(run.path),
        "method": method,
        "pictures": entries,
        "left_out": left_out,
        "trust": {name: one.to_json() for name, one in trust.items()},
    }
    scores = output / SCORES if is_folder else output.with_suffix(".json")
    write_json(scores, content)
    if as_json:
        show_json(content)
        return OK
    if is_folder:
        show(views.predictions_view(entries))
    else:
        said = {name: one["probabilities"] for name, one in entries[0]["networks"].items()}
        show(terminal.probabilities_view(said))
    show(views.maps_view(first))
    show(*views.miss_lines(method, entries), *([views.trust_view(trust)] if trust else []))
    show(f"run      {run.path}", f"scores   {scores}", f"picture  {output}")
    return OK


def _check_method(
    networks: "Networks", images: "Tensor | None", method: str, log: Console
) -> dict[str, "Trust"]:
    """What speaks for the method on each network; nothing where there is no image to check on."""
    if images is None:
        return {}
    with progress(log, "checks") as (bar, task):
        found = networks.check(images, method)
        return dict(bar.track(found, total=len(networks.models), task_id=task))


def _saliency_of_test_set(
    run: "RunDir", networks: "Networks", method: str, n_checked: int, as_json: bool
) -> int:
    """The gallery of each network and the mean maps, into the figures of the run."""
    from gradflow.data import normalise
    from gradflow.present.saliency import views
    from gradflow.present.saliency.asked import first_of_each_class, galleries, save_galleries

    log = stderr()
    _, data = data_of(run)
    pixels, labels = data.store.pixels[data.split.test], data.store.labels[data.split.test]
    checked = first_of_each_class(labels, n_checked)
    images = normalise(pixels[checked]) if len(checked) else None
    trust = _check_method(networks, images, method, log)
    with progress(log, "galleries") as (bar, task):
        made = galleries(networks, pixels, labels, method, trust)
        found = dict(bar.track(made, total=len(networks.models), task_id=task))
    content, figures = save_galleries(run, method, found, trust)
    if as_json:
        show_json(content)
        return OK
    show(views.gallery_view(found), *([views.trust_view(trust)] if trust else []))
    show(f"run      {run.path}", *(f"picture  {path}" for path in figures))
    return OK
