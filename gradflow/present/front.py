"""The front door in Python to what the commands show: maps of a picture, and a report."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradflow.training.rundir import RunDir, Weights

if TYPE_CHECKING:
    from gradflow.present.saliency import Attribution


def saliency(
    run: RunDir | Path | str,
    image: Path | str,
    *,
    method: str = "gradcam",
    n_classes: int | None = None,
    weights: Weights = "best",
) -> "dict[str, Attribution]":
    """By network of a run's first seed: what it says of a picture, and a map for each class.

    As `gradflow saliency IMAGE`, of which it writes nothing and checks no method. Raises BadImage,
    FileNotFoundError, ValueError.
    """
    from gradflow.data import BadImage
    from gradflow.present.saliency.asked import Networks
    from gradflow.present.saliency.pictures import explain, read_pictures

    networks = Networks.load(_opened(run), weights)
    picture = read_pictures([Path(image)], ["picture"], networks.image_size)
    found = next(
        explain(networks.models, picture, networks.class_names, method=method, n_classes=n_classes)
    )
    if isinstance(found, BadImage):
        raise found
    return found[1]


def report(
    runs: RunDir | Path | str | Sequence[Path | str], output: Path | str | None = None
) -> Path:
    """Write the report of runs, as `gradflow report`; by default into the first run's folder.

    Beside the page stand the same as Markdown and JSON, and its figures. Returns the page. Raises
    FileNotFoundError, ValueError.
    """
    from gradflow.present.report import page
    from gradflow.present.report.charts import charts
    from gradflow.present.report.content import collect

    several = [runs] if isinstance(runs, RunDir | Path | str) else runs
    folders = [one.path if isinstance(one, RunDir) else Path(one) for one in several]
    path = folders[0] / "report.html" if output is None else page.page_path(Path(output))
    content = collect(folders)
    return page.write(content, charts(content), path)[0]


def _opened(run: RunDir | Path | str) -> RunDir:
    return run if isinstance(run, RunDir) else RunDir.open(Path(run))
